"""The rollout's step: applies the rules to records, and publishes the decisions. Pure.

State of its only partition (`store.py`): lines, their versions, the canary that is tried on each line with its users,
and the results of executed commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from services.rollout.core import canary, commands, rules, store
from services.rollout.core.decision import Decision
from services.rollout.core.finding import judge
from services.rollout.core.policy import CanaryPolicy
from services.rollout.core.store import CanaryWatch, ExecutedCommand
from services.rollout.core.trial import MAX_USERS, Trial, UserMark, add_point
from shared.cloudevents import cloudevent, traceparent_of
from shared.commands import COMMAND, EXECUTORS, Command, CommandResult, GateAgain
from shared.errors import Rejected
from shared.events import LogRecord, ResponseSample, Tally, from_ms, parse_union, sha256
from shared.records import Output, Record
from shared.stream.step import State, Tick
from shared.topics import (
    FEEDBACK_TALLIES,
    MODEL_CANARY,
    MODEL_ROLLOUT,
    MODEL_VERSIONS,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    RESPONSE_SAMPLES,
    Topic,
)
from shared.versions import CanaryStatus, ModelVersion

SERVICE: Final = "rollout"
CHECK_MS: Final = 10_000
"""How often, in append time, a canary is judged and its progress published while its figures change little."""
ALWAYS_CHECKED_USERS: Final = 200
"""Up to so many users with feedback, the canary is judged after each one; later after each half percent."""


class RolloutStep:
    """A `Step` over versions, commands, tallies and samples of responses."""

    def __init__(self, policy: CanaryPolicy) -> None:
        self._policy = policy

    def __call__(self, state: State, record: Record | Tick) -> Iterator[Output]:
        """Process one record. Time passes only with records (stream time), so ticks do nothing."""
        if isinstance(record, Tick):
            return
        if record.topic == RESPONSE_SAMPLES.name:
            yield from self._sample(state, record)
        elif record.topic == FEEDBACK_TALLIES.name:
            if record.value:  # an empty one deletes a tally: it expired, or its user was erased
                yield from self._vote(state, record)
        elif record.topic == MODEL_VERSIONS.name:
            yield from self._version(state, ModelVersion.from_json(record.value), record)
        elif record.topic == OPERATOR_COMMANDS.name:
            yield from self._command(state, parse_union(COMMAND, record.value), record)
        else:
            raise Rejected(f"the rollout has no rule for records of {record.topic}")

    # --- versions and commands ---

    def _version(self, state: State, version: ModelVersion, record: Record) -> Iterator[Output]:
        line = store.read_line(state, version.line)
        lookup = store.lookup(state, version.line)
        decision = rules.on_version(line, version, lookup, self._policy, record.timestamp)
        yield from self._apply(state, decision, record)

    def _command(self, state: State, command: Command, record: Record) -> Iterator[Output]:
        """Execute a command of the rollout once. A repeated one changes nothing and has the same result again.

        Commands of other services are ignored. A command with the id of another one is refused.
        """
        if EXECUTORS.get(command.kind) != SERVICE:
            return
        content = command.content_digest()
        executed = store.read_executed(state, command.command_id)
        if executed is None:
            outputs, executed = self._execute(state, command, content, record)
            store.remember(state, command.command_id, executed)
            yield from outputs
        elif executed.content not in ("", content):
            executed = ExecutedCommand(
                content=content,
                status="refused",
                message=f"command id {command.command_id} was used before for another command: use a new id",
                at_ms=record.timestamp,
            )
        yield _result(command, executed, record)

    def _execute(
        self, state: State, command: Command, content: str, record: Record
    ) -> tuple[list[Output], ExecutedCommand]:
        now_ms = record.timestamp
        try:
            line = store.read_line(state, command.line)
            lookup = store.lookup(state, command.line)
            decision = commands.on_command(line, command, lookup, self._policy, now_ms)
        except Rejected as refusal:
            return [], ExecutedCommand(
                content=content, status="refused", message=str(refusal)[:2048], at_ms=now_ms
            )
        message = decision.message[:2048]
        executed = ExecutedCommand(content=content, status="done", message=message, at_ms=now_ms)
        return list(self._apply(state, decision, record)), executed

    def _apply(self, state: State, decision: Decision, record: Record) -> Iterator[Output]:
        """Store what a decision changes, and return what it publishes."""
        line, now_ms = decision.state.line, record.timestamp
        watch = store.read_watch(state, line)
        trial = None if watch is None else watch.trial
        published = decision.record
        if published is not None and trial is not None:
            published = published.model_copy(update={"test": trial.test(self._policy)})
            decision = Decision(
                decision.state.model_copy(update={"record": published}),
                decision.versions,
                published,
                decision.gate_again,
                decision.message,
            )
        store.write(state, decision.state, decision.versions)
        if published is not None:
            yield _output(MODEL_ROLLOUT, line, published, f"{line}/{published.seq}", record)
            watch = _next_watch(watch, decision, now_ms)
            if watch is not None and watch.trial is not None:
                yield from self._publish(state, watch, watch.trial, record, paused=published.paused)
            else:
                store.write_watch(state, line, watch)
        newest = decision.state.record
        if decision.gate_again is not None and newest is not None:
            command = GateAgain(
                line=line,
                command_id=f"gate-again-{line}-{newest.seq}-{sha256(decision.gate_again.encode())[:8]}",
                issued_by=SERVICE,
                issued_at=from_ms(now_ms),
                version=decision.gate_again,
            )
            yield _output(OPERATOR_COMMANDS, line, command, command.command_id, record)

    # --- the canary ---

    def _vote(self, state: State, record: Record) -> Iterator[Output]:
        tally = Tally.from_json(record.value)
        watch = store.read_watch(state, tally.line)
        if watch is None:
            return
        before, counted = watch, None
        if (trial := watch.trial) is not None and trial.arm_of(tally.version) is not None:
            mark = store.read_mark(state, trial, tally.user_id)
            counted = trial.count_vote(tally, mark or UserMark(), self._policy)
            watch, counted = _mark(state, watch, trial, tally.user_id, mark, counted)
        yield from self._continue(state, tally.line, before, watch, record, voted=counted is not None)

    def _sample(self, state: State, record: Record) -> Iterator[Output]:
        sample = ResponseSample.from_json(record.value)
        watch = store.read_watch(state, sample.line)
        if watch is None:
            return
        before = watch
        if (trial := watch.trial) is not None and trial.arm_of(sample.version) is not None:
            mark = store.read_mark(state, trial, sample.user_id)
            counted = trial.count_sample(sample, mark or UserMark(), self._policy)
            watch, _ = _mark(state, watch, trial, sample.user_id, mark, counted)
        yield from self._continue(state, sample.line, before, watch, record, voted=False)

    def _continue(
        self, state: State, line: str, before: CanaryWatch, watch: CanaryWatch, record: Record, *, voted: bool
    ) -> Iterator[Output]:
        """Judge the canary if it is time, or consider the version that waits; then store what is watched.

        `before` is what was watched before the record, `watch` with what it counted.
        """
        now_ms = record.timestamp
        watch = store.delete_old_users(state, line, watch)
        trial = watch.trial
        if trial is None and watch.wake_ms and now_ms >= watch.wake_ms:
            store.write_watch(state, line, watch.model_copy(update={"wake_ms": 0}))
            yield from self._wake(state, line, record)
        elif trial is not None and (
            not 0 <= now_ms - trial.checked_ms < CHECK_MS
            or (watch is not before and _is_judged(trial, voted=voted))
        ):
            watch = watch.model_copy(update={"trial": trial.model_copy(update={"checked_ms": now_ms})})
            yield from self._judge(state, line, watch, record)
        elif watch is not before:
            store.write_watch(state, line, watch)

    def _judge(self, state: State, line: str, watch: CanaryWatch, record: Record) -> Iterator[Output]:
        known, trial, now_ms = store.read_line(state, line), watch.trial, record.timestamp
        if trial is None or known.record is None or known.record.canary is None:
            store.write_watch(state, line, CanaryWatch(has_old_users=True))
            return
        finding = judge(trial, self._policy, now_ms, paused=known.record.paused)
        if finding.what == "wait":
            if not 0 <= now_ms - trial.published_ms < CHECK_MS:
                yield from self._publish(state, watch, trial, record, paused=known.record.paused)
            else:
                store.write_watch(state, line, watch)
            return
        if finding.what == "hold":
            watch = watch.model_copy(update={"trial": trial.model_copy(update={"held": finding.reason})})
        store.write_watch(state, line, watch)
        lookup = store.lookup(state, line)
        decision = canary.on_finding(known, known.record, finding, lookup, self._policy, now_ms)
        yield from self._apply(state, decision, record)

    def _wake(self, state: State, line: str, record: Record) -> Iterator[Output]:
        """Begin the step of a canary again whose counts are lost, or consider the version that waits."""
        known, lookup = store.read_line(state, line), store.lookup(state, line)
        waiting, now_ms = None if known.waiting is None else lookup(known.waiting), record.timestamp
        if known.record is not None and known.record.canary is not None:
            watch = CanaryWatch(trial=Trial.begin(known.record, now_ms), has_old_users=True)
            store.write_watch(state, line, watch)
        elif waiting is not None and known.record is not None:
            decision = rules.consider(known, known.record, waiting, lookup, self._policy, now_ms)
            yield from self._apply(state, decision, record)

    def _publish(
        self, state: State, watch: CanaryWatch, trial: Trial, record: Record, *, paused: bool
    ) -> Iterator[Output]:
        """Publish the progress of a canary, and store what is watched."""
        now_ms = record.timestamp
        finding = judge(trial, self._policy, now_ms, paused=paused, estimate=True)
        test = trial.test(self._policy, finding.waits_for)
        points = add_point(store.read_points(state, trial.line, trial.canary), test, now_ms)
        status = CanaryStatus(
            line=trial.line, seq=trial.run, test=test, points=points, updated_at=from_ms(now_ms)
        )
        store.write_points(state, trial.line, trial.canary, points)
        trial = trial.model_copy(update={"published_ms": now_ms})
        store.write_watch(state, trial.line, watch.model_copy(update={"trial": trial}))
        yield _output(MODEL_CANARY, trial.line, status, f"{trial.line}/{trial.run}/{now_ms}", record)


def _mark(
    state: State,
    watch: CanaryWatch,
    trial: Trial,
    user: str,
    before: UserMark | None,
    counted: tuple[Trial, UserMark] | None,
) -> tuple[CanaryWatch, tuple[Trial, UserMark] | None]:
    """Store that a user was counted, unless there are too many users already."""
    if counted is None or (before is None and trial.marks >= MAX_USERS):
        return watch, None
    after, mark = counted
    store.write_mark(state, trial, user, mark)
    if before is None:
        after = after.model_copy(update={"marks": after.marks + 1})
    return watch.model_copy(update={"trial": after}), counted


def _is_judged(trial: Trial, *, voted: bool) -> bool:
    """Return whether a canary is judged after a record. Leaving out looks never makes a test invalid."""
    if voted:
        users = trial.canary_arm.users + trial.stable_arm.users
        return users <= ALWAYS_CHECKED_USERS or users % (users // ALWAYS_CHECKED_USERS) == 0
    return sum(trial.canary_arm.failed) <= ALWAYS_CHECKED_USERS and trial.canary_arm.failed[1] > 0


def _next_watch(watch: CanaryWatch | None, decision: Decision, now_ms: int) -> CanaryWatch | None:
    """Return what is watched after a decision: a new step, the present one, or what is left of the canary."""
    record, state = decision.record, decision.state
    assert record is not None
    before = None if watch is None else watch.trial
    old = before is not None or (watch is not None and watch.has_old_users)
    if record.canary is None:
        wake_ms = state.cool_until_ms if state.waiting is not None and state.cool_until_ms > now_ms else 0
        return CanaryWatch(wake_ms=wake_ms, has_old_users=old)
    same = before is not None and before.canary == record.canary.version and before.share == record.share
    if before is None or not same or (record.action == "resume" and before.held):
        return CanaryWatch(trial=Trial.begin(record, now_ms, before), has_old_users=old)
    if record.action == "resume":
        before = before.model_copy(update={"deadline_from_ms": now_ms})
    return CanaryWatch(trial=before, has_old_users=watch is not None and watch.has_old_users)


def _result(command: Command, executed: ExecutedCommand, record: Record) -> Output:
    result = CommandResult(
        line=command.line,
        command_id=command.command_id,
        status=executed.status,
        message=executed.message,
        executor=SERVICE,
        finished_at=from_ms(executed.at_ms),
    )
    return _output(OPERATOR_RESULTS, command.command_id, result, f"{command.command_id}/{SERVICE}", record)


def _output(topic: Topic, key: str, content: LogRecord, ce_id: str, cause: Record) -> Output:
    return cloudevent(
        topic,
        key,
        content,
        source=SERVICE,
        ce_id=ce_id,
        at=from_ms(cause.timestamp),
        traceparent=traceparent_of(cause.headers),
        partition=0,
    )
