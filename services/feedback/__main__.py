"""`python -m services.feedback`: reads the settings, makes the real parts once, serves."""

from __future__ import annotations

import os
import signal
import sys

import structlog
from uuid6 import uuid7

from services.feedback.api import add_erasure_routes, build_app
from services.feedback.command_consumer import KafkaCommandConsumer
from services.feedback.dlq_replay_worker import DeadLetterReplayer, DeadLetterReplayThread
from services.feedback.erasure_handler import ErasureHandler
from services.feedback.erasure_status import ErasureStatusView
from services.feedback.handlers import SERVICE, FeedbackHandlers
from services.feedback.outcome_lookup import OutcomeLookup
from services.feedback.settings import FeedbackSettings
from services.feedback.views import OutcomeIndex, VersionsView
from shared.adapters.clock import SystemClock
from shared.adapters.http import serve
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher, KafkaTransactionalPublisher
from shared.adapters.log_lookup import KafkaLogRanges
from shared.adapters.redis import RedisCache
from shared.adapters.topic_admin import check_partitions
from shared.adapters.topic_follower import TopicFollower
from shared.errors import LoopwrightError
from shared.pseudonym import Pseudonymiser
from shared.settings import load
from shared.telemetry import Readiness, configure_logging
from shared.topics import (
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    FEEDBACK_OUTCOMES,
    MODEL_ROLLOUT,
    MODEL_VERSIONS,
    OPERATOR_RESULTS,
)

log = structlog.get_logger(__name__)
START_S = 60.0


def main() -> None:
    try:
        settings = load(FeedbackSettings)
        configure_logging(SERVICE, settings.log_level)
        log.info("settings", **settings.masked())
        key = settings.require_pseudonym_key()
        check_partitions(settings.kafka_bootstrap_servers, settings.partitions, wait_s=START_S)
    except LoopwrightError as error:
        sys.exit(f"{SERVICE}: {error}")
    if not run(settings, key):
        sys.exit(f"{SERVICE}: stopped because the log could not be followed; see the last error above")


def run(settings: FeedbackSettings, key: bytes) -> bool:
    """Serves until told to stop. False if it stopped because of an error."""
    servers = settings.kafka_bootstrap_servers
    readiness = Readiness("versions", "outcomes", "erasures")
    cache = RedisCache(settings.redis_url)
    standing = VersionsView()
    index = OutcomeIndex(cache, ttl_s=settings.receipt_ttl_s, pending_ttl_s=settings.pending_ttl_s)
    history = OutcomeLookup(
        lambda topic, partition: KafkaLogReader(servers, SERVICE, [topic], partitions=[partition]),
        partitions=settings.partitions,
        timeout_s=settings.scan_timeout_s,
        slots=settings.scans,
    )
    door = FeedbackHandlers(
        settings=settings,
        publisher=KafkaPublisher(servers, SERVICE, timeout_s=settings.ack_timeout_s),
        cache=cache,
        clock=SystemClock(),
        pseudonyms=Pseudonymiser(key),
        standing=standing,
        index=index,
        history=history,
    )

    eraser = _eraser(settings, key, cache)
    followers = _followers(servers, readiness, standing, index, eraser)
    replays = DeadLetterReplayThread(
        DeadLetterReplayer(
            open_duty=lambda: KafkaCommandConsumer(servers, SERVICE),
            open_results=lambda: KafkaLogReader(servers, SERVICE, [OPERATOR_RESULTS.name]),
            ranges=KafkaLogRanges(servers, SERVICE),
            publisher=KafkaPublisher(servers, SERVICE, timeout_s=settings.ack_timeout_s),
            clock=SystemClock(),
            ack_s=settings.ack_timeout_s,
        )
    )
    replays.start()
    app = build_app(door, followers, readiness)
    add_erasure_routes(app, eraser, followers[-1])
    try:
        serve(app, settings.host, settings.port)
    finally:
        replays.stop()
    return not any(follower.failed for follower in followers)


def _followers(
    servers: str, readiness: Readiness, standing: VersionsView, index: OutcomeIndex, eraser: ErasureHandler
) -> list[TopicFollower]:
    """What the door knows of the log."""

    def begin_again() -> None:
        index.forget()
        _stop()

    topics = [MODEL_VERSIONS.name, MODEL_ROLLOUT.name]
    return [
        TopicFollower(
            "versions", lambda: KafkaLogReader(servers, SERVICE, topics), standing.apply, readiness, _stop
        ),
        TopicFollower(
            "outcomes",
            lambda: KafkaLogReader(servers, SERVICE, [FEEDBACK_OUTCOMES.name], index.starts()),
            index.apply,
            readiness,
            begin_again,
        ),
        TopicFollower(
            "erasures",
            lambda: KafkaLogReader(servers, SERVICE, [ERASURE_REQUESTS.name, ERASURE_REPORTS.name]),
            eraser.erasures.apply,
            readiness,
            _stop,
        ),
    ]


def _eraser(settings: FeedbackSettings, key: bytes, cache: RedisCache) -> ErasureHandler:
    servers = settings.kafka_bootstrap_servers
    # One for each process: two doors that erase at once are not to fence each other.
    identity = f"loopwright-{SERVICE}-erasure-{uuid7()}"
    return ErasureHandler(
        settings=settings,
        open_publisher=lambda: KafkaTransactionalPublisher(
            servers, SERVICE, identity, timeout_s=settings.ack_timeout_s
        ),
        open_requests=lambda: KafkaLogReader(servers, SERVICE, [ERASURE_REQUESTS.name], partitions=[0]),
        cache=cache,
        clock=SystemClock(),
        pseudonyms=Pseudonymiser(key),
        erasures=ErasureStatusView(),
    )


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
