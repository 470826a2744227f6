"""Entry point of the console: `python -m services.console`."""

from __future__ import annotations

from services.console.service import Adapters, ConsoleService
from services.console.settings import SERVICE, ConsoleSettings
from services.console.topic_offsets import KafkaEndOffsets
from shared.adapters.access import Access
from shared.adapters.clock import SystemClock
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.log_lookup import KafkaLogRanges
from shared.adapters.redis import RedisCache
from shared.adapters.topic_admin import CheckedReaders
from shared.entry_point import run_service
from shared.errors import Fatal
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS


def run(settings: ConsoleSettings) -> None:
    """Build the service with real adapters and run it until a signal stops it."""
    kafka, partitions = settings.kafka, settings.partitions
    feedback = KafkaEndOffsets(kafka, SERVICE, FEEDBACK_EVENTS.name, partitions)
    responses = KafkaEndOffsets(kafka, SERVICE, CHAT_RESPONSES.name, partitions)
    adapters = Adapters(
        publisher=KafkaPublisher(kafka, SERVICE, timeout_s=settings.ack_timeout_s),
        cache=RedisCache(settings.redis_url),
        clock=SystemClock(),
        log_ranges=KafkaLogRanges(kafka, SERVICE),
        open_reader=CheckedReaders(kafka, SERVICE, partitions),
        count_feedback=feedback.count_since,
        count_responses=responses.total,
        access=Access.from_settings(settings),
    )
    try:
        stopped_cleanly = ConsoleService(settings, adapters).run()
    finally:
        feedback.close()
        responses.close()
    if not stopped_cleanly:
        raise Fatal("stopped because a topic could not be followed; the last error above has the cause")


def main() -> None:
    """Run the service."""
    run_service(SERVICE, ConsoleSettings, run)


if __name__ == "__main__":
    main()
