"""Publish versions and erasure reports: complete, immutable, and at most once (I6).

A version is published again only with a later gate report, and otherwise unchanged.

A version gets its number when it is published, under the line's transactional id, so two trainers of one line can never
assign the same number. Whether a run was published is always read from the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import structlog

from services.trainer.run.run_table import RunConfig
from services.trainer.versions.gate_looks import next_look
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

SERVICE: Final = "trainer"
OpenReader = Callable[[str], LogReader]
"""Opens a reader of one topic, from its beginning."""
R = TypeVar("R", bound=LogRecord)
log = structlog.get_logger(__name__)


def transactional_id(line: str) -> str:
    """Return the transactional id of the trainer of `line`."""
    return f"loopwright-trainer-{line}"


def lease_group(line: str) -> str:
    """Return the consumer group whose lease the trainer of `line` holds."""
    return f"loopwright-trainer-{line}"


class VersionLog:
    """The log's records about one line's versions, and the only way to publish a version.

    Every method reads the log as it is at that moment, and raises `BrokerUnavailable` if it cannot.
    """

    def __init__(
        self, line: str, open_reader: OpenReader, open_publisher: Callable[[], TransactionalPublisher]
    ) -> None:
        self._line = line
        self._open_reader = open_reader
        self._open_publisher = open_publisher
        self._publisher: TransactionalPublisher | None = open_publisher()

    def versions(self) -> list[ModelVersion]:
        """Return the line's versions with their latest gate reports, in the order in which they were published."""
        return latest_records(self._read(MODEL_VERSIONS.name, ModelVersion))

    def line_records(self) -> LineRecords:
        """Return all records of the line that lineage needs."""
        return line_records(self._open_reader, self._line)

    def all_lines(self) -> tuple[list[ModelVersion], list[RolloutRecord]]:
        """Return the versions and rollout records of all lines."""
        versions = latest_records(read_records(self._open_reader, MODEL_VERSIONS.name, ModelVersion))
        return versions, read_records(self._open_reader, MODEL_ROLLOUT.name, RolloutRecord)

    def stable(self, base: VersionRef) -> VersionRef:
        """Return the line's stable version, or `base` if there is no rollout record."""
        records = self._read(MODEL_ROLLOUT.name, RolloutRecord)
        return max(records, key=lambda record: record.seq).stable if records else base

    def find(self, ref: VersionRef) -> ModelVersion | None:
        """Return the record of a version, or None if the line has no such version."""
        return next((version for version in self.versions() if version.ref.version == ref.version), None)

    def next_look(self, stable: VersionRef) -> int:
        """Return which gate since the last promotion the next one is (`gate_looks.py`)."""
        return next_look(self.versions(), stable)

    def answered_commands(self) -> set[str]:
        """Return the ids of the line's commands that have a result."""
        return {result.command_id for result in self._read(OPERATOR_RESULTS.name, CommandResult)}

    def announce_base(self, base: PinnedBase, now_ms: int) -> bool:
        """Publish the base as a version unless it is one. Return whether it was published."""
        ref = base.ref(self._line)
        if self.find(ref) is not None:
            return False
        version = ModelVersion(
            line=self._line, ref=ref, base=ref.version, base_model=base.name, created_at=from_ms(now_ms)
        )
        self._publish(version)
        return True

    def publish(
        self, config: RunConfig, dataset: DatasetRef, report: GateReport, artifact: Path, store: ArtifactStore
    ) -> ModelVersion:
        """Publish a run's version unless the log has one of this run. Return the version on the log.

        Raises:
            Fenced: if another trainer has taken over the line.
            BrokerUnavailable: if it is unknown whether the version is on the log. Call again to find out; no version
                is published twice.

        """
        published = self.version_of_run(config.run_id)
        if published is not None:
            return published
        versions = self.versions()
        uri, digest = store.put(artifact)
        number = max((version.number or 0 for version in versions), default=0) + 1
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

    def publish_gate(self, name: str, report: GateReport) -> GateReport:
        """Publish a version again with a later gate report. Return the report that is on the log.

        Nothing is published if the log has a report with this number or a higher one. Raises like `publish`, and
        `UnknownVersion`.
        """
        version = self.line_records().find(name)
        if version.gate is not None and version.gate.number >= report.number:
            return version.gate
        self._publish(version.model_copy(update={"gate": report}))
        return report

    def version_of_run(self, run_id: str) -> ModelVersion | None:
        """Return the version that the run was published as, or None. Completes an interrupted transaction first."""
        self._open_transactions()
        return next((version for version in self.versions() if version.run_id == run_id), None)

    def publish_erasure_reports(self, reports: Sequence[ErasureReport]) -> None:
        """Publish the trainer's erasure reports that are not on the log. Raises as `publish` does."""
        self._open_transactions()
        published = {
            report.request_id
            for report in self._read(ERASURE_REPORTS.name, ErasureReport)
            if report.service == SERVICE
        }
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
                if report.request_id not in published
            ]
        )

    def close(self) -> None:
        """Close the publisher."""
        if self._publisher is not None:
            self._publisher.close()

    def _open_transactions(self) -> TransactionalPublisher:
        """Return the publisher. Opening one ends any transaction that an earlier publisher left open."""
        if self._publisher is None:
            self._publisher = self._open_publisher()
        return self._publisher

    def _publish(self, version: ModelVersion) -> None:
        name = version.ref.version
        again = version.gate.number if version.gate is not None and version.gate.number > 1 else None
        ce_id = name if again is None else f"{name}/{again}"
        record = cloudevent(
            MODEL_VERSIONS, name, version, source=SERVICE, ce_id=ce_id, at=version.created_at, partition=0
        )
        self._commit([record])
        log.info("version_published", version=name, verdict=version.gate.verdict if version.gate else "base")

    def _commit(self, records: Sequence[Output]) -> None:
        if not records:
            return
        publisher = self._open_transactions()
        try:
            publisher.publish_all(records)
        except Fenced as error:
            raise Fenced(
                f"another trainer took over line {self._line}, so this one ends: run one trainer per line ({error})"
            ) from error
        except BrokerUnavailable:
            self._publisher = None
            publisher.close()
            raise

    def _read(self, topic: str, kind: type[R]) -> list[R]:
        return [
            record for record in read_records(self._open_reader, topic, kind) if record.line == self._line
        ]


def line_records(open_reader: OpenReader, line: str) -> LineRecords:
    """Return the log's records of one line that lineage needs. Raises `BrokerUnavailable`."""

    def read(topic: str, kind: type[R]) -> list[R]:
        return [record for record in read_records(open_reader, topic, kind) if record.line == line]

    rollouts = read(MODEL_ROLLOUT.name, RolloutRecord)
    return LineRecords(
        line=line,
        versions=latest_records(read(MODEL_VERSIONS.name, ModelVersion)),
        rollout=max(rollouts, key=lambda record: record.seq, default=None),
        erasures=[
            report for report in read(ERASURE_REPORTS.name, ErasureReport) if report.service == SERVICE
        ],
    )


def latest_records(versions: Iterable[ModelVersion]) -> list[ModelVersion]:
    """Return the last record of each version, in the order of the first ones. A new gate publishes another record."""
    return list({version.ref.version: version for version in versions}.values())


def read_records(open_reader: OpenReader, topic: str, kind: type[R]) -> list[R]:
    """Return the readable records on a topic as it is now, of all lines. Raises `BrokerUnavailable`."""
    reader = open_reader(topic)
    records: list[R] = []
    try:
        while not reader.at_end():
            for record in reader.poll(0.2):
                try:
                    records.append(kind.from_json(record.value))
                except (Malformed, Oversized) as error:
                    log.warning("unreadable_record", topic=topic, offset=record.offset, error=str(error))
    finally:
        reader.close()
    return records
