"""Logging, metrics and readiness. Every metric of Loopwright is declared here once, with its meaning."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from prometheus_client import Counter, Gauge, Histogram

CHAT_REQUESTS = Counter("loopwright_chat_requests", "Chat completions by outcome", ["version", "status"])
CHAT_SECONDS = Histogram(
    "loopwright_chat_seconds", "Time from admission to the last token, in seconds", ["version"]
)
CHAT_TOKENS = Counter("loopwright_chat_tokens", "Tokens generated", ["version"])
SPOOL_RECORDS = Gauge("loopwright_spool_records", "Response records on disk, not yet acknowledged by Kafka")
SPOOL_LOST = Counter("loopwright_spool_lost", "Response records dropped because the spool was full")
RESPONSES_NOT_RECORDED = Counter(
    "loopwright_responses_not_recorded",
    "Responses that were answered but not recorded, by reason",
    ["reason"],
)
SERVING = Gauge("loopwright_serving", "1 for the version that serves the line", ["line", "version"])
ROLLOUT_SEQ = Gauge("loopwright_rollout_seq", "Newest rollout record applied", ["line"])
ARTIFACTS_REFUSED = Counter("loopwright_artifacts_refused", "Versions refused because of their artifact")

FEEDBACK_ACCEPTED = Counter("loopwright_feedback_accepted", "Feedback events acknowledged by Kafka", ["kind"])
FEEDBACK_REFUSED = Counter("loopwright_feedback_refused", "Feedback events refused by the API", ["code"])
ERASURES_OPEN = Gauge(
    "loopwright_erasures_open", "Erasures that the processor or the trainer has not completed"
)

ENGINE_RECORDS = Counter(
    "loopwright_engine_records", "Input records whose transaction committed", ["application"]
)
ENGINE_COMMITS = Counter("loopwright_engine_commits", "Transactions committed", ["application"])
ENGINE_ABORTS = Counter("loopwright_engine_aborts", "Transactions aborted", ["application"])


class EngineMetric(NamedTuple):
    """A gauge that is read from an engine's status when metrics are collected (`shared/stream/engine_metrics.py`)."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    """In addition to `application`."""


ENGINE_READY = EngineMetric("loopwright_engine_ready", "1 while records are processed as they arrive")
ENGINE_STATE = EngineMetric("loopwright_engine_state", "1 for the current state of the engine", ("state",))
ENGINE_PARTITIONS = EngineMetric("loopwright_engine_partitions", "Partitions that this process owns")
ENGINE_LAG = EngineMetric(
    "loopwright_engine_lag",
    "Offsets from the committed position to the end of an input",
    ("topic", "partition"),
)
ENGINE_OLDEST_AGE = EngineMetric(
    "loopwright_engine_oldest_record_age_seconds",
    "Time since the append of the oldest record that was read and not processed; 0 if there is none",
    ("partition",),
)
ENGINE_STREAM_TIME = EngineMetric(
    "loopwright_engine_stream_time_seconds",
    "Stream time of a partition: the newest append time processed, in seconds since the epoch",
    ("partition",),
)
ENGINE_BEHIND_CLOCK = EngineMetric(
    "loopwright_engine_behind_clock_seconds",
    "Wall-clock time of this host minus the partition's stream time; grows while a partition is idle",
    ("partition",),
)
ENGINE_STATE_BYTES = EngineMetric(
    "loopwright_engine_state_bytes",
    "Size of a partition's state on disk and in write buffers",
    ("partition",),
)
ENGINE_STATE_KEYS = EngineMetric(
    "loopwright_engine_state_keys", "Approximate number of keys in a partition's state", ("partition",)
)
ENGINE_HALTED = EngineMetric(
    "loopwright_engine_partition_halted", "1 for a partition that waits for a person", ("partition",)
)
ENGINE_NOTIFICATIONS_FAILING = EngineMetric(
    "loopwright_engine_notifications_failing",
    "1 while ticks or reread completions of a partition raise",
    ("partition",),
)
ENGINE_RESTORED = EngineMetric(
    "loopwright_engine_restored_ratio",
    "Share of the changelog read by the restore in progress; 1 if there is none",
)
ENGINE_CLOCK_AGREES = EngineMetric(
    "loopwright_engine_clock_agrees",
    "0 while ticks are refused because this host's clock differs from the broker's",
)
ENGINE_GAUGES = (
    ENGINE_READY,
    ENGINE_STATE,
    ENGINE_PARTITIONS,
    ENGINE_LAG,
    ENGINE_OLDEST_AGE,
    ENGINE_STREAM_TIME,
    ENGINE_BEHIND_CLOCK,
    ENGINE_STATE_BYTES,
    ENGINE_STATE_KEYS,
    ENGINE_HALTED,
    ENGINE_NOTIFICATIONS_FAILING,
    ENGINE_RESTORED,
    ENGINE_CLOCK_AGREES,
)
ENGINE_HALTS = Counter(
    "loopwright_engine_halts", "Halts of partitions since the start of the process", ["application"]
)
ENGINE_SKIPS = Counter(
    "loopwright_engine_skips", "Records that an operator let a halted partition skip", ["application"]
)
DEAD_LETTERED = Counter("loopwright_dead_letters", "Records sent to dead.letters", ["service", "code"])
OUTCOMES = Counter("loopwright_outcomes", "Outcomes of feedback events", ["outcome"])
PUBLISHERS_REPLACED = Counter(
    "loopwright_publishers_replaced", "Kafka clients replaced because they could not continue", ["service"]
)
LIVE_VIEW_BEHIND = Gauge(
    "loopwright_live_view_behind", "Records of feedback.tallies that the live view has not read yet"
)
LIVE_VIEW_FAILURES = Counter(
    "loopwright_live_view_failures", "Failures of the live view; it restarts after each"
)

TRAINING_RUNS = Counter("loopwright_training_runs", "Finished training runs, by verdict", ["line", "verdict"])
USABLE_EXAMPLES = Gauge("loopwright_usable_examples", "New usable examples since the last run", ["line"])
TRAINED_TOKENS = Counter("loopwright_trained_tokens", "Tokens trained on, without padding", ["line"])

CACHE_FAILURES = Counter("loopwright_cache_failures", "Failed calls to Redis; each counts as a cache miss")


def configure_logging(service: str, level: str = "INFO") -> None:
    """Log to standard error, one JSON object per line, each with the service's name."""
    logging.basicConfig(stream=sys.stderr, level=level, format="%(message)s", force=True)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


@dataclass(frozen=True, slots=True)
class Check:
    """State of one readiness check. `detail` says what is missing."""

    ok: bool
    detail: str


class Readiness:
    """Readiness of a service: named checks that must all pass. Thread-safe.

    A service names all its checks at start; each begins as not ready.
    """

    def __init__(self, *names: str) -> None:
        self._lock = threading.Lock()
        self._checks = {name: Check(False, "starting") for name in names}
        self._watched: dict[str, Callable[[], str | None]] = {}

    def set(self, name: str, ok: bool, detail: str = "") -> None:
        """Set the state of a check."""
        with self._lock:
            self._checks[name] = Check(ok, detail)

    def watch(self, name: str, problem: Callable[[], str | None]) -> None:
        """Add a check that asks for a problem whenever the readiness is reported; it passes if there is none."""
        with self._lock:
            self._watched[name] = problem

    def report(self) -> tuple[bool, dict[str, str]]:
        """Return whether all checks pass, and the state of each: "ok", or what is missing."""
        with self._lock:
            checks, watched = dict(self._checks), dict(self._watched)
        for name, problem in watched.items():
            detail = problem()
            checks[name] = Check(detail is None, detail or "")
        return all(c.ok for c in checks.values()), {
            name: f"ok{': ' + c.detail if c.detail else ''}" if c.ok else c.detail or "not ready"
            for name, c in checks.items()
        }
