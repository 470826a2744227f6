"""The live view without Kafka: its sums, when it waits for the engine, and how it restarts."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.processor.live_view.tally_table import COUNTERS, VERSIONS_SHOWN, TallyTable, parse_entry
from services.processor.live_view.view import FIRST_PAUSE_S, LiveView
from shared.errors import Malformed
from shared.events import Tally, from_ms
from shared.records import Record

V1, V2 = "assistant@v1-00000001", "assistant@v2-00000002"


def tally(version: str = V1, user: str = "u1", at_ms: int = 1_000, **counts: int) -> bytes:
    record = Tally(
        line="assistant", version=version, user_id=user, partition=0, updated_at=from_ms(at_ms), **counts
    )
    return record.to_json()


def table_of(*tallies: bytes, max_keys: int = 1_000) -> TallyTable:
    """Return a table with each of these tallies under its own key."""
    table = TallyTable(max_keys)
    for number, value in enumerate(tallies):
        table.apply(b"%d" % number, value)
    return table


# --- sums ---------------------------------------------------------------------------------------------------------


def test_tallies_are_summed_per_version_with_mean_rating() -> None:
    summary = table_of(
        tally(up=2, ratings=3, rating_sum=10), tally(user="u2", down=1), tally(V2, user="u2", corrections=4)
    ).summary()
    zeros = {name: 0 for name in COUNTERS if name != "rating_sum"}
    assert summary["versions"][V1] == zeros | {
        "up": 2, "down": 1, "ratings": 3, "rating_mean": 3.333, "users": 2
    }  # fmt: skip
    assert summary["versions"][V2]["rating_mean"] is None
    assert (summary["totals"]["users"], summary["totals"]["versions"]) == (2, 2)
    assert (summary["totals"]["up"], summary["totals"]["corrections"]) == (2, 4)


def test_user_in_two_partitions_counts_as_one() -> None:
    table = table_of(tally(up=1), tally(up=1))
    assert table.summary()["versions"][V1]["users"] == 1
    table.apply(b"0", None)
    assert table.summary()["versions"][V1]["users"] == 1
    table.apply(b"1", None)
    assert table.summary() == TallyTable().summary()


def test_summary_is_bounded_and_can_show_one_version() -> None:
    table = table_of(
        *(tally(f"assistant@v{n}-00000000", at_ms=n, up=1) for n in range(1, VERSIONS_SHOWN + 11))
    )
    summary = table.summary()
    assert len(summary["versions"]) == VERSIONS_SHOWN
    assert summary["versions_left_out"] == 10
    assert next(iter(summary["versions"])) == f"assistant@v{VERSIONS_SHOWN + 10}-00000000"
    assert summary["totals"]["up"] == VERSIONS_SHOWN + 10
    single = table.summary("assistant@v1-00000000")
    assert list(single["versions"]) == ["assistant@v1-00000000"]
    assert single["totals"] == summary["totals"]
    assert table.summary("assistant@v999-00000000")["versions"] == {}


changes = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.none() | st.tuples(st.sampled_from([V1, V2]), st.sampled_from(["a", "b", "c"]), st.integers(0, 9)),
    )
)


@given(changes)
def test_sums_equal_those_of_the_newest_tallies(
    history: list[tuple[int, tuple[str, str, int] | None]],
) -> None:
    newest: dict[int, tuple[str, str, int]] = {}
    table = TallyTable()
    for key, change in history:
        if change is None:
            table.apply(b"%d" % key, None)
            newest.pop(key, None)
        else:
            version, user, up = change
            table.apply(b"%d" % key, tally(version, user, up=up))
            newest[key] = change
    ups: Counter[str] = Counter()
    for version, _, up in newest.values():
        ups[version] += up
    summary = table.summary()
    assert {name: sums["up"] for name, sums in summary["versions"].items()} == dict(ups)
    assert summary["totals"]["users"] == len({user for _, user, _ in newest.values()})


def test_parsing_refuses_records_that_are_no_tally() -> None:
    for value in (b"", b"\xff", b"[]", b'{"version": 1}'):
        with pytest.raises(Malformed):
            parse_entry(value)


def test_newest_tally_counts_and_deletion_removes_it() -> None:
    table = TallyTable()
    table.apply(b"k", tally(up=1))
    table.apply(b"k", tally(up=5))
    assert table.summary()["totals"]["up"] == 5
    table.apply(b"k", None)
    table.apply(b"never seen", None)
    assert table.summary()["totals"]["up"] == 0
    assert len(table) == 0


def test_unreadable_records_are_counted_and_skipped() -> None:
    table = TallyTable()
    table.apply(b"k", tally(up=3))
    table.apply(b"k", b"garbage")
    table.apply(None, tally())
    assert table.records == {"read": 3, "unreadable": 2}
    assert table.summary()["totals"]["up"] == 3


def test_full_table_counts_the_new_keys_it_leaves_out() -> None:
    table = table_of(*(tally(user=f"u{n}", up=1) for n in range(5)), max_keys=2)
    table.apply(b"0", tally(up=7, user="u0"))
    assert table.records["left_out"] == 3
    assert table.summary()["totals"]["up"] == 8
    table.apply(b"1", None)
    table.apply(b"9", tally(user="u9", up=1))
    assert table.summary()["totals"]["up"] == 8


# --- next to the engine -------------------------------------------------------------------------------------------


class StopAfter(threading.Event):
    """A stop signal that is set after a number of waits, and records them instead of waiting."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._left = waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        if len(self.waits) >= self._left:
            self.set()
        return self.is_set()


class FakeEngine:
    def __init__(self, *, ready: bool = True, lag: int = 0, state: str = "running") -> None:
        self.ready, self.state = ready, state
        self.config = SimpleNamespace(slice_records=4_000)
        self.lag = lag

    def partitions(self) -> tuple[Any, ...]:
        return (SimpleNamespace(lag={"a": self.lag, "b": 0}),)


class FakeReader:
    """Returns one tally per poll, or raises."""

    def __init__(self, error: Exception | None = None, after: int = 0) -> None:
        self.polls = 0
        self.closed = False
        self._error, self._after = error, after

    def poll(self, _timeout: float) -> list[Record]:
        if self._error is not None and self.polls >= self._after:
            raise self._error
        self.polls += 1
        return [Record("feedback.tallies", 0, self.polls, 0, b"k", tally(up=self.polls))]

    def behind(self) -> int | None:
        return 0

    def close(self) -> None:
        self.closed = True


def run_view(engine: FakeEngine, readers: list[FakeReader], waits: int) -> tuple[LiveView, StopAfter]:
    """Run a view that opens these readers one after another, until it has waited this often."""
    stopping, left = StopAfter(waits), list(readers)
    view = LiveView(engine, lambda: left.pop(0), stopping=stopping)  # type: ignore[arg-type, return-value]
    view.run()
    return view, stopping


def test_view_starts_only_once_the_engine_is_ready() -> None:
    view, _ = run_view(FakeEngine(ready=False, state="starting"), [], waits=5)
    assert view.status() == "not started yet"
    assert view.snapshot()["behind"] is None


@pytest.mark.parametrize(
    ("engine", "reads"),
    [
        (FakeEngine(), True),
        (FakeEngine(lag=4_000), True),
        (FakeEngine(lag=4_001), False),
        (FakeEngine(state="restoring"), False),
        (FakeEngine(state="halted"), True),
    ],
)
def test_view_reads_nothing_while_the_engine_has_a_backlog(engine: FakeEngine, reads: bool) -> None:
    reader = FakeReader()
    view, _ = run_view(engine, [reader], waits=3)
    assert (reader.polls > 0) is reads
    assert (view.snapshot()["totals"]["up"] > 0) is reads
    assert reader.closed


def test_status_says_that_the_view_waits_for_the_engine() -> None:
    engine = FakeEngine()
    view, _ = run_view(engine, [FakeReader()], waits=2)
    assert view.status() == "ok"
    engine.lag = 9_000
    assert view.status() == "behind by 0 records, waiting for the engine"


def test_view_restarts_after_any_failure_with_growing_pauses() -> None:
    errors = [OSError("no broker"), RuntimeError("a bug"), ValueError("another")]
    readers = [FakeReader(error) for error in errors]
    view, stopping = run_view(FakeEngine(), readers, waits=3)
    assert stopping.waits == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert view.snapshot()["failures"] == 3
    assert view.status() == "restarting after: ValueError: another"
    assert view.snapshot()["live_view"] == view.status()
    assert all(reader.closed for reader in readers)


def test_view_whose_reader_cannot_be_opened_restarts() -> None:
    view, stopping = run_view(FakeEngine(), [], waits=2)
    assert view.snapshot()["failures"] == 2
    assert stopping.waits == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S]


def test_view_that_failed_forgets_what_it_had_read() -> None:
    """It may have missed the deletion of an erased user's tally."""
    failing = FakeReader(KeyError("while reading"), after=1)
    view, stopping = run_view(FakeEngine(), [failing], waits=2)
    assert (failing.polls, failing.closed) == (1, True)
    assert stopping.waits[-1] == FIRST_PAUSE_S
    assert view.snapshot()["records"]["read"] == 0
    assert view.snapshot()["totals"]["up"] == 0
