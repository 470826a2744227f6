"""Looks up what earlier transactions of an engine left in the log: newest positions, and records that were numbered."""

from __future__ import annotations

from collections.abc import Collection

from shared.adapters.log_lookup import KafkaLogRanges
from shared.errors import Misconfigured
from shared.ports import LogRanges
from shared.stream.config import EngineConfig
from shared.stream.partition import Positions
from shared.stream.state_store import POSITIONS_KEY

FIRST_SPAN = 10_000
"""Offsets searched first for the newest positions. They are the last record of each transaction."""
READ_TIMEOUT_S = 120.0


class LogHistory:
    """Reads committed records of an engine's topics. Every method may raise `BrokerUnavailable`."""

    def __init__(self, config: EngineConfig, ranges: LogRanges | None = None) -> None:
        self._config = config
        service = config.service or config.application
        self._ranges = ranges or KafkaLogRanges(config.kafka, service, timeout_s=READ_TIMEOUT_S)

    def newest_positions(self, partition: int, low: int, high: int) -> Positions | None:
        """Return the newest positions in `low <= offset < high` of a changelog partition, or None."""
        end, span = high, FIRST_SPAN
        while end > low:
            start = max(low, end - span)
            found = None
            for record in self._ranges.read(self._config.changelog, {partition: (start, end)}):
                if record.key == POSITIONS_KEY and record.value is not None:
                    found = record.value
            if found is not None:
                return Positions.decode(found)
            end, span = start, span * 10
        return None

    def used_outputs(self, partitions: Collection[int]) -> dict[int, list[str]]:
        """Return the numbered outputs that have records, by partition."""
        used: dict[int, list[str]] = {number: [] for number in partitions}
        for topic in self._config.numbered_outputs if partitions else ():
            try:
                bounds = self._ranges.bounds(topic)
            except Misconfigured:  # it does not exist yet
                continue
            for number in partitions:
                low, high = bounds.get(number, (0, 0))
                # Aborted transactions take offsets too.
                if (
                    low < high
                    and next(iter(self._ranges.read(topic, {number: (low, high)})), None) is not None
                ):
                    used[number].append(topic)
        return used
