"""Declare the topics: content, writers and retention of each (design section 4).

P, the number of partitions, is fixed when a deployment is created. `python -m shared.adapters.topic_admin` creates
missing topics, reports settings of existing topics that differ (`--apply` changes them), and fails if an existing
topic has a different number of partitions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DAY_MS = 86_400_000
WINDOW_DAYS = 30
"""Number of days, in append time, during which feedback is joined to its response."""
ERASED_WITHIN_DAYS = WINDOW_DAYS + 7
"""Deadline of an erasure in days. Inputs and dead letters are retained for the join window plus five days. A log
segment covers up to one more day, and the broker deletes expired segments periodically."""
BATCH_BYTES = 512 * 1024
MAX_MESSAGE_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic and its settings. `writers` are services, or `sdk` for topics that apps may write directly."""

    name: str
    key: str
    writers: frozenset[str]
    keep_days: int | None = None
    """Retention in days; None means that records are kept forever. A compacted topic may have both."""
    compact: bool = False
    single_partition: bool = False
    append_time: bool = False
    """True for the engine's inputs and changelogs: the broker's clock sets timestamps (LogAppendTime).

    No producer can move the time of an input, and the engine refuses to run otherwise. An acknowledged changelog record
    tells the engine what time it is at the broker."""
    is_changelog: bool = False
    """Whether the topic is the backup of an engine's state, which must be compacted and nothing else."""
    config: dict[str, str] = field(default_factory=dict, hash=False)

    def partitions(self, p: int) -> int:
        """Return the number of partitions in a deployment with P = `p`."""
        return 1 if self.single_partition else p

    def broker_config(self) -> dict[str, str]:
        """Return the topic's settings in the broker's names."""
        policy = ["compact"] * self.compact + ["delete"] * (self.keep_days is not None)
        return {
            "cleanup.policy": ",".join(policy),
            "retention.ms": str(self.keep_days * DAY_MS if self.keep_days is not None else -1),
            "message.timestamp.type": "LogAppendTime" if self.append_time else "CreateTime",
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
            **self.config,
        }


def _by(*names: str) -> frozenset[str]:
    return frozenset(names)


INPUT_DAYS = WINDOW_DAYS + 5
PROOF_DAYS = 400
"""Retention of erasure requests and reports: a user may ask for proof of the erasure a year later."""
SEGMENTS = {"segment.ms": str(DAY_MS)}
"""Retention deletes whole segments, so records outlive it by at most one day."""
COMPACTED = {"segment.ms": str(DAY_MS), "max.compaction.lag.ms": str(DAY_MS)}
"""Replaced and deleted records leave the disk within about a day: the longest wait for compaction."""
ALL_READERS = _by("inference", "feedback", "processor", "trainer", "rollout", "console")

CHAT_RESPONSES = Topic(
    "chat.responses",
    "response_id",
    _by("inference", "feedback", "sdk"),
    keep_days=INPUT_DAYS,
    append_time=True,
    config=SEGMENTS,
)
FEEDBACK_EVENTS = Topic(
    "feedback.events",
    "response_id",
    _by("feedback", "sdk"),
    keep_days=INPUT_DAYS,
    append_time=True,
    config=SEGMENTS,
)
ERASURE_REQUESTS = Topic(
    "erasure.requests", "subject", _by("feedback"), keep_days=PROOF_DAYS, append_time=True
)
ERASURE_REPORTS = Topic("erasure.reports", "request_id", _by("processor", "trainer"), keep_days=PROOF_DAYS)
PROCESSOR_CHANGELOG = Topic(
    "processor.changelog",
    "store key",
    _by("processor"),
    compact=True,
    append_time=True,
    is_changelog=True,
    config=COMPACTED,
)
TRAINING_BATCHES = Topic("training.batches", "batch_id", _by("processor"), compact=True, config=COMPACTED)
FEEDBACK_OUTCOMES = Topic("feedback.outcomes", "response_id", _by("processor"), keep_days=90)
FEEDBACK_TALLIES = Topic(
    "feedback.tallies",
    "version, user, partition",
    _by("processor"),
    keep_days=30,
    compact=True,
    single_partition=True,
    append_time=True,
    config=COMPACTED,
)
"""One partition, so that the one rollout process that decides can read it as an input. Feedback is rare: see
`docs/decisions/canary.md`."""
RESPONSE_SAMPLES = Topic(
    "response.samples",
    "version, user",
    _by("processor"),
    keep_days=INPUT_DAYS,
    single_partition=True,
    append_time=True,
    config=SEGMENTS,
)
"""As `feedback.tallies`: one partition, of small records."""
DEAD_LETTERS = Topic("dead.letters", "original key", ALL_READERS, keep_days=INPUT_DAYS, config=SEGMENTS)
MODEL_VERSIONS = Topic(
    "model.versions", "version", _by("trainer"), compact=True, single_partition=True, append_time=True
)
MODEL_ROLLOUT = Topic("model.rollout", "line", _by("rollout"), compact=True, single_partition=True)
MODEL_SERVING = Topic(
    "model.serving",
    "line, replica",
    _by("inference"),
    keep_days=2,
    compact=True,
    single_partition=True,
    append_time=True,
    config=COMPACTED,
)
"""Reports are repeated every few seconds, so two days are enough to forget replicas that ended without saying so."""
MODEL_CANARY = Topic("model.canary", "line", _by("rollout"), compact=True, single_partition=True)
OPERATOR_COMMANDS = Topic(
    "operator.commands",
    "line",
    _by("console", "rollout", "trainer"),
    keep_days=90,
    single_partition=True,
    append_time=True,
)
OPERATOR_RESULTS = Topic(
    "operator.results", "command_id", ALL_READERS - {"console"}, keep_days=90, single_partition=True
)
ROLLOUT_CHANGELOG = Topic(
    "rollout.changelog",
    "store key",
    _by("rollout"),
    compact=True,
    single_partition=True,
    append_time=True,
    is_changelog=True,
)

TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        CHAT_RESPONSES,
        FEEDBACK_EVENTS,
        ERASURE_REQUESTS,
        ERASURE_REPORTS,
        PROCESSOR_CHANGELOG,
        TRAINING_BATCHES,
        FEEDBACK_OUTCOMES,
        FEEDBACK_TALLIES,
        RESPONSE_SAMPLES,
        DEAD_LETTERS,
        MODEL_VERSIONS,
        MODEL_ROLLOUT,
        MODEL_CANARY,
        MODEL_SERVING,
        OPERATOR_COMMANDS,
        OPERATOR_RESULTS,
        ROLLOUT_CHANGELOG,
    )
}


def may_write(service: str, topic: str) -> bool:
    """Return whether `service` may write `topic`. No service may write an unknown topic."""
    return topic in TOPICS and service in TOPICS[topic].writers
