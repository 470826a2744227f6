"""`python -m services.console`: reads the settings, makes the real parts once, serves."""

from __future__ import annotations

import os
import signal
import sys

import structlog

from services.console.api.dead_letter_routes import DeadLetterReader, add_dead_letter_routes
from services.console.api.quarantine_routes import add_quarantine_routes
from services.console.api.routes import SERVICE, ConsoleBackend, build_app
from services.console.core.projection import FOLLOWED_TOPICS
from services.console.pages.page import add_page
from services.console.pages.refresher import PageRefresher
from services.console.settings import ConsoleSettings
from services.console.topic_offsets import KafkaEndOffsets
from shared.adapters.clock import SystemClock
from shared.adapters.http import serve
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.adapters.log_lookup import KafkaLogRanges
from shared.adapters.redis import RedisCache
from shared.adapters.topic_admin import check_partitions
from shared.adapters.topic_follower import TopicFollower
from shared.errors import LoopwrightError
from shared.settings import load
from shared.telemetry import Readiness, configure_logging
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS

log = structlog.get_logger(__name__)
START_S = 60.0


def main() -> None:
    try:
        settings = load(ConsoleSettings)
        configure_logging(SERVICE, settings.log_level)
        log.info("settings", **settings.masked())
        check_partitions(settings.kafka_bootstrap_servers, settings.partitions, wait_s=START_S)
    except LoopwrightError as error:
        sys.exit(f"{SERVICE}: {error}")
    if not run(settings):
        sys.exit(f"{SERVICE}: stopped because the log could not be followed; see the last error above")


def run(settings: ConsoleSettings) -> bool:
    """Serves until told to stop. False if it stopped because of an error."""
    servers = settings.kafka_bootstrap_servers
    readiness = Readiness("log")
    ends = KafkaEndOffsets(servers, SERVICE, FEEDBACK_EVENTS.name, settings.partitions)
    chats = KafkaEndOffsets(servers, SERVICE, CHAT_RESPONSES.name, settings.partitions)
    console = ConsoleBackend(
        settings=settings,
        publisher=KafkaPublisher(servers, SERVICE, timeout_s=settings.ack_timeout_s),
        cache=RedisCache(settings.redis_url),
        clock=SystemClock(),
        accepted=ends.count,
    )
    topics = [topic.name for topic in FOLLOWED_TOPICS]
    follower = TopicFollower(
        "log", lambda: KafkaLogReader(servers, SERVICE, topics), console.apply, readiness, _stop
    )
    app = build_app(console, follower, readiness)
    add_dead_letter_routes(
        app, console, follower, DeadLetterReader(console, KafkaLogRanges(servers, SERVICE))
    )
    add_quarantine_routes(app, console, follower)
    add_page(app, console, PageRefresher(console, follower, chats.count))
    try:
        serve(app, settings.host, settings.port)
    finally:
        ends.close()
        chats.close()
    return not follower.failed


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
