"""From a run's artifact to a published version: complete, immutable, at most once (I6). Erasures are reported so too.

A version's number is given here, under the fence of the line's transactional identity, so that two trainers can never
give the same one. Whether a run was published already is read from the log, never remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from services.trainer.run.run_table import RunConfig
from services.trainer.versions.lineage import LineRecords
from shared.adapters.base_model import PinnedBase
from shared.cloudevents import cloudevent
from shared.commands import CommandResult
from shared.errors import BrokerUnavailable, Fenced, Malformed, Oversized
from shared.events import ErasureReport, LogRecord, from_ms
from shared.ports import ArtifactStore, LogReader, TransactionalPublisher
from shared.records import Output
from shared.topics import ERASURE_REPORTS, MODEL_ROLLOUT, MODEL_VERSIONS, OPERATOR_RESULTS
from shared.versions import DatasetRef, GateReport, ModelVersion, RolloutRecord, VersionRef, version_name

SERVICE = "trainer"
OpenReader = Callable[[str], LogReader]
"""Opens a reader of one topic from its beginning."""
R = TypeVar("R", bound=LogRecord)
log = structlog.get_logger(__name__)


def transactional_id(line: str) -> str:
    """The transactional identity of a line's one trainer."""
    return f"loopwright-trainer-{line}"


class VersionLog:
    """The line's versions, rollout and command results as the log has them, and the one way to add a version."""

    def __init__(
        self, line: str, read: OpenReader, open_publisher: Callable[[], TransactionalPublisher]
    ) -> None:
        self._line = line
        self._read = read
        self._open = open_publisher
        self._publisher: TransactionalPublisher | None = open_publisher()

    def versions(self) -> list[ModelVersion]:
        """In the order in which they were published."""
        return self._all(MODEL_VERSIONS.name, ModelVersion)

    def published(self) -> LineRecords:
        """All that lineage needs of the log, as it is now."""
        return line_records(self._read, self._line)

    def of_all_lines(self) -> tuple[list[ModelVersion], list[RolloutRecord]]:
        """All versions and all rollout records, as they are now."""
        versions = read_records(self._read, MODEL_VERSIONS.name, ModelVersion)
        return versions, read_records(self._read, MODEL_ROLLOUT.name, RolloutRecord)

    def stable(self, base: VersionRef) -> VersionRef:
        """The version that serves; the base where nothing was ever decided, or on another base."""
        records = self._all(MODEL_ROLLOUT.name, RolloutRecord)
        return max(records, key=lambda record: record.seq).stable if records else base

    def run_of(self, ref: VersionRef) -> ModelVersion | None:
        return next((version for version in self.versions() if version.ref.version == ref.version), None)

    def answered(self) -> set[str]:
        """The commands of this line that have a result."""
        return {result.command_id for result in self._all(OPERATOR_RESULTS.name, CommandResult)}

    def announce_base(self, base: PinnedBase, now_ms: int) -> bool:
        """Publishes the base as a version if it is not one yet. Returns whether it did."""
        ref = base.ref(self._line)
        if any(version.ref.version == ref.version for version in self.versions()):
            return False
        version = ModelVersion(
            line=self._line, ref=ref, base=ref.version, base_model=base.name, created_at=from_ms(now_ms)
        )
        self._publish(version)
        return True

    def publish(
        self, config: RunConfig, dataset: DatasetRef, report: GateReport, artifact: Path, store: ArtifactStore
    ) -> ModelVersion:
        """Publishes what a run made, unless the log has it already. Raises `Fenced` where another trainer has taken
        over the line, `BrokerUnavailable` where it is to be tried again (nothing is doubled by that)."""
        there = self.made_by(config.run_id)
        if there is not None:
            return there
        known = self.versions()
        uri, digest = store.put(artifact)
        number = max((version.number or 0 for version in known), default=0) + 1
        version = ModelVersion(
            line=self._line,
            ref=VersionRef(
                version=version_name(self._line, number, digest),
                kind=config.recipe.method,
                uri=uri,
                digest=digest,
            ),
            number=number,
            base=version_name(self._line, None, config.base_digest),
            base_model=config.base_name,
            run_id=config.run_id,
            dataset=dataset,
            gate=report,
            created_at=config.created_at,
        )
        self._publish(version)
        return version

    def made_by(self, run_id: str) -> ModelVersion | None:
        """The version that a run was published as. What an earlier try left undecided is settled before."""
        self._fence()
        return next((version for version in self.versions() if version.run_id == run_id), None)

    def report(self, reports: Sequence[ErasureReport]) -> None:
        """Publishes those of this trainer's reports that the log does not have. Raises as `publish`."""
        self._fence()
        known = self._all(ERASURE_REPORTS.name, ErasureReport)
        there = {report.request_id for report in known if report.service == SERVICE}
        self._commit(
            [
                cloudevent(
                    ERASURE_REPORTS,
                    report.request_id,
                    report,
                    source=SERVICE,
                    ce_id=f"{report.request_id}/{SERVICE}/{self._line}",
                    at=report.completed_at,
                )
                for report in reports
                if report.request_id not in there
            ]
        )

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()

    def _fence(self) -> TransactionalPublisher:
        """After a failure whose outcome is unknown a new publisher ends what the old one left open."""
        if self._publisher is None:
            self._publisher = self._open()
        return self._publisher

    def _publish(self, version: ModelVersion) -> None:
        name = version.ref.version
        record = cloudevent(
            MODEL_VERSIONS, name, version, source=SERVICE, ce_id=name, at=version.created_at, partition=0
        )
        self._commit([record])
        log.info("version_published", version=name, verdict=version.gate.verdict if version.gate else "base")

    def _commit(self, records: Sequence[Output]) -> None:
        if not records:
            return
        publisher = self._fence()
        try:
            publisher.publish_all(records)
        except Fenced as error:
            raise Fenced(
                f"another trainer took over the line {self._line}: one trainer per line; this one ends. ({error})"
            ) from error
        except BrokerUnavailable:
            self._publisher = None
            publisher.close()
            raise

    def _all(self, topic: str, kind: type[R]) -> list[R]:
        return [one for one in read_records(self._read, topic, kind) if one.line == self._line]


def line_records(read: OpenReader, line: str) -> LineRecords:
    """What the log has of a line now. Raises `BrokerUnavailable`."""
    versions = [one for one in read_records(read, MODEL_VERSIONS.name, ModelVersion) if one.line == line]
    decided = [one for one in read_records(read, MODEL_ROLLOUT.name, RolloutRecord) if one.line == line]
    reports = [
        one
        for one in read_records(read, ERASURE_REPORTS.name, ErasureReport)
        if one.line == line and one.service == SERVICE
    ]
    return LineRecords(line, versions, max(decided, key=lambda one: one.seq, default=None), reports)


def read_records(read: OpenReader, topic: str, kind: type[R]) -> list[R]:
    """All readable records of a topic as it is now, of all lines. Raises `BrokerUnavailable`."""
    reader = read(topic)
    found: list[R] = []
    try:
        while not reader.at_end():
            for record in reader.poll(0.2):
                try:
                    found.append(kind.from_json(record.value))
                except (Malformed, Oversized) as error:
                    log.warning("unreadable_record", topic=topic, offset=record.offset, error=str(error))
    finally:
        reader.close()
    return found
