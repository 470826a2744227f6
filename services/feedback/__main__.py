"""Entry point of the feedback service: `python -m services.feedback`."""

from __future__ import annotations

import sys
from functools import partial
from typing import Final

from uuid6 import uuid7

from services.feedback.browser_tokens import BrowserTokens
from services.feedback.command_consumer import KafkaCommandConsumer
from services.feedback.service import Adapters, FeedbackService
from services.feedback.settings import SERVICE, FeedbackSettings
from shared.adapters.access import Access
from shared.adapters.clock import SystemClock
from shared.adapters.kafka import KafkaPublisher, KafkaTransactionalPublisher
from shared.adapters.log_lookup import KafkaLogEnds, KafkaLogRanges
from shared.adapters.redis import RedisCache
from shared.adapters.redis_pipeline import RedisPipeline
from shared.adapters.topic_admin import CheckedReaders
from shared.entry_point import run_service
from shared.errors import Fatal
from shared.stream.instance import claim_instance
from shared.stream.rocksdb_store import RocksDBStoreFactory

SWITCH_INTERVAL_S: Final = 0.0005
"""How long one thread may keep the others waiting. At Python's 5 ms, threads that ask for receipts queue behind the one
that indexes new records: the slowest hundredth took ten times as long."""
EXPORT_TIMEOUT_S: Final = 3_600.0
"""Longest time to read one topic for an export."""


def run(settings: FeedbackSettings) -> None:
    """Build the service with real adapters and run it until a signal stops it."""
    pseudonym_key = settings.require_pseudonym_key()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if not FeedbackService(settings, pseudonym_key, build_adapters(settings)).run():
        raise Fatal("stopped because a topic could not be followed; the last error above has the cause")


def build_adapters(settings: FeedbackSettings) -> Adapters:
    """Connect to Kafka and Redis."""
    kafka, ack_timeout_s = settings.kafka, settings.ack_timeout_s
    token_key = settings.token_key
    tokens = BrowserTokens(token_key.get_secret_value().encode(), SystemClock()) if token_key else None
    # A transactional id of its own per process, so that processes that write erasures at once do not fence each other.
    erasure_id = f"loopwright-{SERVICE}-erasure-{uuid7()}"
    folder = settings.data_dir / SERVICE / "receipts"
    stores = RocksDBStoreFactory(folder / claim_instance(folder).name, settings.receipt_cache_mb)
    return Adapters(
        # A request waits for its acknowledgement, so records hardly wait for others.
        publisher=KafkaPublisher(kafka, SERVICE, timeout_s=ack_timeout_s, linger_ms=1),
        replay_publisher=KafkaPublisher(kafka, SERVICE, timeout_s=ack_timeout_s),
        cache=RedisCache(settings.redis_url),
        async_cache=RedisPipeline(settings.redis_url),
        clock=SystemClock(),
        log_ranges=KafkaLogRanges(kafka, SERVICE),
        export_ranges=KafkaLogRanges(kafka, SERVICE, timeout_s=EXPORT_TIMEOUT_S),
        open_reader=CheckedReaders(kafka, SERVICE, settings.partitions),
        end_of=KafkaLogEnds(kafka, SERVICE),
        open_receipt_store=partial(stores, 0),
        open_erasure_publisher=partial(
            KafkaTransactionalPublisher, kafka, SERVICE, erasure_id, timeout_s=ack_timeout_s
        ),
        open_command_consumer=partial(KafkaCommandConsumer, kafka, SERVICE),
        access=Access.from_settings(settings, tokens=tokens, origins=settings.origins),
        tokens=tokens,
    )


def main() -> None:
    """Run the service."""
    run_service(SERVICE, FeedbackSettings, run)


if __name__ == "__main__":
    main()
