"""The live view without Kafka: its sums, and when it waits or begins anew."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.processor.live_view.agent import LiveView
from services.processor.live_view.sums import FIGURES, VERSIONS_SHOWN, Entry, Sums, entry_of
from services.processor.live_view.supervisor import LiveKeeper
from shared.errors import Malformed
from shared.events import Tally, from_ms

V1, V2 = "assistant@v1-00000001", "assistant@v2-00000002"


def entry(version: str = V1, user: str = "u1", at: int = 1, **figures: int) -> Entry:
    return Entry(version, user, at, tuple(figures.get(name, 0) for name in FIGURES))


def summed(*entries: Entry) -> Sums:
    sums = Sums()
    for each in entries:
        sums.moved(None, each)
    return sums


def test_what_users_made_of_each_version_is_summed_with_the_mean_rating() -> None:
    shown = summed(
        entry(up=2, ratings=3, rating_sum=10), entry(user="u2", down=1), entry(V2, user="u2", corrections=4)
    ).shown()
    assert shown["versions"][V1] == {
        "up": 2, "down": 1, "ratings": 3, "corrections": 0, "comments": 0, "preferences": 0,
        "rating_mean": 3.333, "users": 2,
    }  # fmt: skip
    assert shown["versions"][V2]["rating_mean"] is None
    assert (shown["totals"]["users"], shown["totals"]["versions"]) == (2, 2)
    assert (shown["totals"]["up"], shown["totals"]["corrections"]) == (2, 4)


def test_a_user_in_two_partitions_is_one_user() -> None:
    sums = summed(entry(up=1), entry(up=1))
    assert sums.shown()["versions"][V1]["users"] == 1
    sums.moved(entry(up=1), None)
    assert sums.shown()["versions"][V1]["users"] == 1
    sums.moved(entry(up=1), None)
    assert sums.shown() == Sums().shown()


def test_the_answer_is_bounded_and_one_version_can_be_asked_for() -> None:
    sums = summed(*(entry(f"assistant@v{n}-00000000", at=n, up=1) for n in range(1, VERSIONS_SHOWN + 11)))
    shown = sums.shown()
    assert len(shown["versions"]) == VERSIONS_SHOWN
    assert shown["versions_left_out"] == 10
    assert next(iter(shown["versions"])) == f"assistant@v{VERSIONS_SHOWN + 10}-00000000"
    assert shown["totals"]["up"] == VERSIONS_SHOWN + 10
    one = sums.shown("assistant@v1-00000000")
    assert list(one["versions"]) == ["assistant@v1-00000000"]
    assert one["totals"] == shown["totals"]
    assert sums.shown("assistant@v999-00000000")["versions"] == {}


changes = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.none() | st.tuples(st.sampled_from([V1, V2]), st.sampled_from(["a", "b", "c"]), st.integers(0, 9)),
    )
)


@given(changes)
def test_the_sums_are_those_of_the_table_whatever_came_before(
    history: list[tuple[int, tuple[str, str, int] | None]],
) -> None:
    table: dict[int, Entry] = {}
    sums = Sums()
    for key, told in history:
        after = None if told is None else entry(told[0], told[1], up=told[2])
        sums.moved(table.get(key), after)
        if after is None:
            table.pop(key, None)
        else:
            table[key] = after
    ups: Counter[str] = Counter()
    for each in table.values():
        ups[each.version] += each.figures[0]
    shown = sums.shown()
    assert {name: found["up"] for name, found in shown["versions"].items()} == dict(ups)
    assert shown["totals"]["users"] == len({each.user_id for each in table.values()})


def test_what_is_no_tally_is_refused() -> None:
    for value in (b"", b"\xff", b"[]", b'{"version": 1}'):
        with pytest.raises(Malformed):
            entry_of(value)


def tally(up: int = 1, user: str = "u1") -> bytes:
    made = Tally(line="assistant", version=V1, user_id=user, partition=0, up=up, updated_at=from_ms(1_000))
    return made.to_json()


def take(view: LiveView, key: bytes | None, value: bytes | None) -> None:
    view.take(SimpleNamespace(key=key, value=value))  # type: ignore[arg-type]


def test_the_newest_tally_of_a_key_counts_and_a_deletion_takes_it_away() -> None:
    view = LiveView("127.0.0.1:9", "live")
    take(view, b"k", tally(up=1))
    take(view, b"k", tally(up=5))
    assert view.sums.shown()["totals"]["up"] == 5
    take(view, b"k", None)
    take(view, b"never seen", None)
    assert view.sums.shown()["totals"]["up"] == 0
    assert len(view.table) == 0


def test_what_cannot_be_read_is_counted_and_passed_over() -> None:
    view = LiveView("127.0.0.1:9", "live")
    take(view, b"k", tally(up=3))
    take(view, b"k", b"garbage")
    take(view, None, tally())
    assert view.counted == {"read": 3, "unreadable": 2}
    assert view.sums.shown()["totals"]["up"] == 3


def test_beyond_the_most_keys_it_counts_what_it_leaves_out() -> None:
    view = LiveView("127.0.0.1:9", "live", most_keys=2)
    for n in range(5):
        take(view, b"%d" % n, tally(user=f"u{n}"))
    take(view, b"0", tally(up=7, user="u0"))
    assert view.counted["left_out"] == 3
    assert view.sums.shown()["totals"]["up"] == 8
    take(view, b"1", None)
    take(view, b"9", tally(user="u9"))
    assert view.sums.shown()["totals"]["up"] == 8


class Worker:
    """Stands where the service does: stops after so many sleeps, and remembers how long each was."""

    def __init__(self, sleeps: int) -> None:
        self.slept: list[float] = []
        self._left = sleeps

    @property
    def should_stop(self) -> bool:
        return len(self.slept) >= self._left

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class FakeEngine:
    def __init__(self, *, ready: bool = True, lag: int = 0, state: str = "running") -> None:
        self.ready, self.state = ready, state
        self.config = SimpleNamespace(slice_records=4_000)
        self._lag = lag

    def partitions(self) -> tuple[Any, ...]:
        return (SimpleNamespace(lag={"a": self._lag, "b": 0}),)


class FakeView:
    """A life that goes on, or fails as told."""

    def __init__(self, fails: BaseException | None = None) -> None:
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.failure: BaseException | None = None
        self.behind: int | None = 0
        self.counted: Counter[str] = Counter()
        self.sums = Sums()
        self.app = SimpleNamespace(start=self._start, stop=self._stop, should_stop=False, crash_reason=None)
        self.stopped = False
        self.could_read: list[bool] = []
        self._fails = fails

    async def _start(self) -> None:
        if self._fails is not None:
            raise self._fails

    async def _stop(self) -> None:
        self.stopped = True
        if self._fails is not None:
            raise RuntimeError("Event loop is closed")

    async def measure(self) -> None:
        self.could_read.append(self.may_read.is_set())


def kept(engine: FakeEngine, views: list[FakeView], sleeps: int) -> tuple[LiveKeeper, Worker]:
    left = list(views)
    keeper = LiveKeeper(engine, lambda: left.pop(0))  # type: ignore[arg-type, return-value]
    worker = Worker(sleeps)
    asyncio.run(keeper.keep(worker))  # type: ignore[arg-type]
    return keeper, worker


def test_the_engine_comes_first_the_view_starts_when_it_is_ready() -> None:
    keeper, _ = kept(FakeEngine(ready=False, state="starting"), [], sleeps=5)
    assert keeper.detail() == "not started yet"
    assert keeper.answer()["behind"] is None


@pytest.mark.parametrize(
    ("engine", "may_read"),
    [
        (FakeEngine(), True),
        (FakeEngine(lag=4_000), True),
        (FakeEngine(lag=4_001), False),
        (FakeEngine(state="restoring"), False),
        (FakeEngine(state="halted"), True),
    ],
)
def test_it_reads_nothing_while_the_engine_has_a_backlog(engine: FakeEngine, may_read: bool) -> None:
    view = FakeView()
    kept(engine, [view], sleeps=3)
    assert view.could_read == [may_read]
    assert view.stopped


def test_whatever_fails_in_it_it_begins_anew_after_a_longer_pause_each_time_and_says_so() -> None:
    broken = [
        FakeView(OSError("no broker")),
        FakeView(RuntimeError("a bug")),
        FakeView(ValueError("another")),
    ]
    keeper, worker = kept(FakeEngine(), broken, sleeps=3)
    assert worker.slept == [1.0, 2.0, 4.0]
    assert keeper.failures == 3
    assert keeper.detail() == "starts anew after: ValueError: another"
    assert keeper.answer()["live_view"] == keeper.detail()
    assert all(view.stopped for view in broken)


def test_a_view_that_cannot_even_be_made_is_a_failed_one() -> None:
    keeper, worker = kept(FakeEngine(), [], sleeps=2)
    assert keeper.failures == 2
    assert worker.slept == [1.0, 2.0]


def test_an_agent_that_died_ends_the_life_of_the_view() -> None:
    died, next_one = FakeView(), FakeView()
    died.failure = KeyError("in the agent")
    keeper, _ = kept(FakeEngine(), [died, next_one], sleeps=3)
    assert died.stopped
    assert next_one.could_read == [True]
    assert keeper.failures == 1
