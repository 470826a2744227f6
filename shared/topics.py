"""Declare the topics: content, writers and retention of each (design section 4).

P, the number of partitions, is fixed when a deployment is created. `python -m shared.adapters.topic_admin` creates
missing topics, reports settings of existing topics that differ (`--apply` changes them), and fails if an existing
topic has a different number of partitions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DAY_MS = 86_400_000
WINDOW_DAYS = 30
"""How long after a response its feedback is still joined, in days of append time."""
ERASED_WITHIN_DAYS = WINDOW_DAYS + 7
"""An erasure's deadline. What users said stands in the inputs and the dead letters for the window and five days; a
segment takes one day to be full of what is old, and the broker looks for what to remove now and then."""
BATCH_BYTES = 512 * 1024
MAX_MESSAGE_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class Topic:
    """`writers` are services, or `sdk` for what an app's own process may write."""

    name: str
    key: str
    writers: frozenset[str]
    keep_days: int | None = None
    """None = compacted, kept for ever (or for `keep_days` where both apply)."""
    compact: bool = False
    single_partition: bool = False
    append_time: bool = False
    """True for the inputs: the broker's clock stamps them, so that no producer can move time."""
    config: dict[str, str] = field(default_factory=dict, hash=False)

    def partitions(self, p: int) -> int:
        return 1 if self.single_partition else p

    def broker_config(self) -> dict[str, str]:
        """The topic's settings as the broker takes them."""
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
"""Who asked to be erased may ask for the proof a year later."""
SEGMENTS = {"segment.ms": str(DAY_MS)}
"""What is past its time goes by whole segments: a day's worth at most is kept longer."""
COMPACTED = {"segment.ms": str(DAY_MS), "max.compaction.lag.ms": str(DAY_MS)}
"""What was replaced or deleted leaves the disk: no record waits longer for the broker to compact it."""
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
    "processor.changelog", "store key", _by("processor"), compact=True, config=COMPACTED
)
TRAINING_BATCHES = Topic("training.batches", "batch_id", _by("processor"), compact=True, config=COMPACTED)
FEEDBACK_OUTCOMES = Topic("feedback.outcomes", "response_id", _by("processor"), keep_days=90)
FEEDBACK_TALLIES = Topic(
    "feedback.tallies",
    "version, user, partition",
    _by("processor"),
    keep_days=30,
    compact=True,
    config=COMPACTED,
)
DEAD_LETTERS = Topic("dead.letters", "original key", ALL_READERS, keep_days=INPUT_DAYS, config=SEGMENTS)
MODEL_VERSIONS = Topic("model.versions", "version", _by("trainer"), compact=True, single_partition=True)
MODEL_ROLLOUT = Topic("model.rollout", "line", _by("rollout"), compact=True, single_partition=True)
OPERATOR_COMMANDS = Topic(
    "operator.commands", "line", _by("console"), keep_days=90, single_partition=True, append_time=True
)
OPERATOR_RESULTS = Topic(
    "operator.results", "command_id", ALL_READERS - {"console"}, keep_days=90, single_partition=True
)
ROLLOUT_CHANGELOG = Topic(
    "rollout.changelog", "store key", _by("rollout"), compact=True, single_partition=True
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
        DEAD_LETTERS,
        MODEL_VERSIONS,
        MODEL_ROLLOUT,
        OPERATOR_COMMANDS,
        OPERATOR_RESULTS,
        ROLLOUT_CHANGELOG,
    )
}


def may_write(service: str, topic: str) -> bool:
    """Whether the table of writers allows it. Unknown topics belong to nobody."""
    return topic in TOPICS and service in TOPICS[topic].writers
