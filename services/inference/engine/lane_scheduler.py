"""Which rows share the next forward pass. A scheduler of transformers' continuous batching; imports torch."""

from __future__ import annotations

from collections.abc import Mapping

from transformers.generation.continuous_batching import PagedAttentionCache, RequestState, Scheduler
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestStatus

from services.inference.engine.generation_rows import ChoiceRow

Lane = tuple[str, str | None]
"""Rows that may share a forward pass: a version's rows, or (version, id) of a row that needs its own step."""
Turn = tuple[str, bool]
"""What takes turns: a version's shared rows, and its rows that need their own step."""


class LaneScheduler(Scheduler):
    """Scheduler of several versions on one cache: each step serves one lane, and lanes take turns.

    Whatever has waited longest is next, so neither a version nor a row that needs its own steps waits for the end of
    another one. All rows of a version that need their own steps have one turn together, so that its shared rows get
    as many steps as these, however many they are.

    Args:
        cache: Cache of all rows. It must have room for every row that is added.
        rows: The running rows by request id.
        max_rows: Limit of rows in a step.

    """

    def __init__(self, cache: PagedAttentionCache, rows: Mapping[str, ChoiceRow], max_rows: int) -> None:
        super().__init__(cache, safety_margin=0.0, max_requests_per_batch=max_rows)
        self.lane: Lane | None = None
        """Lane of the last batch, until `forget_lane`."""
        self._rows = rows
        self._step = 0
        self._last_turn: dict[Turn, int] = {}
        self._last_step: dict[Lane, int] = {}

    def forget_lane(self) -> None:
        """Set `lane` to None, so that it tells whether a lane has been chosen since."""
        self.lane = None

    def schedule_batch(
        self, token_budget: int, cache_budget: int
    ) -> tuple[list[FutureRequestState] | None, bool, int, int]:
        """Return the next batch, as `Scheduler` describes it: rows of one lane, those that generate first."""
        lanes: dict[Lane, list[RequestState]] = {}
        for state in [*self.active_requests.values(), *self._get_waiting_candidates()]:
            lanes.setdefault(lane_of(self._rows[state.request_id]), []).append(state)
        self.lane = lane = self._next_lane(list(lanes))
        candidates = sorted(lanes[lane], key=lambda state: state.status != RequestStatus.DECODING)
        started: set[str] = set()
        scheduled, failed, fast, queries, keys = self._process_candidates(
            candidates, token_budget, cache_budget, started
        )
        self._cleanup_waiting_queue(started)
        return (None if failed and not scheduled else scheduled), fast, queries, keys

    def _next_lane(self, lanes: list[Lane]) -> Lane:
        """Return the lane whose turn it is, and note that it had it. A new one comes last."""
        self._last_turn = {
            turn: self._last_turn.get(turn, self._step) for turn in (_turn_of(lane) for lane in lanes)
        }
        self._last_step = {lane: self._last_step.get(lane, self._step) for lane in lanes}
        lane = min(lanes, key=lambda lane: (self._last_turn[_turn_of(lane)], self._last_step[lane]))
        self._step += 1
        self._last_turn[_turn_of(lane)] = self._last_step[lane] = self._step
        return lane


def lane_of(row: ChoiceRow) -> Lane:
    """Return the lane of a row."""
    return row.version, row.id if row.needs_own_step else None


def _turn_of(lane: Lane) -> Turn:
    version, own = lane
    return version, own is not None
