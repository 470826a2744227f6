"""Steps of a run: every row trains, steps have about equal tokens, and each mixes the objectives in their share."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.training.rows import TokenizedRow
from services.trainer.training.step_plan import Step, micro_batches, plan_steps, shares_of_processes

SIZES = st.lists(st.integers(1, 60), max_size=40)


def row(name: str, objective: Any = "sft", size: int = 8, *, liked: bool = True) -> TokenizedRow:
    """Return a row whose sequences have `size` tokens."""
    answer = tuple(range(1, size))
    return TokenizedRow(name, objective, (0,), answer, answer if objective == "dpo" else (), liked)


def rows_of(sft: list[int], liked: list[int], disliked: list[int], dpo: list[int]) -> list[TokenizedRow]:
    return [
        *(row(f"s{i}", size=size + 1) for i, size in enumerate(sft)),
        *(row(f"l{i}", "kto", size + 1) for i, size in enumerate(liked)),
        *(row(f"d{i}", "kto", size + 1, liked=False) for i, size in enumerate(disliked)),
        *(row(f"p{i}", "dpo", size + 1) for i, size in enumerate(dpo)),
    ]


def names(steps: list[Step]) -> Counter[str]:
    return Counter(one.name for step in steps for one in step)


@given(SIZES, SIZES, SIZES, SIZES, SIZES, st.integers(1, 4), st.integers(1, 900), st.integers(0, 3))
def test_rows_train_once_per_epoch_and_replay_rows_once(
    sft: list[int],
    liked: list[int],
    disliked: list[int],
    dpo: list[int],
    replay_sizes: list[int],
    epochs: int,
    tokens_per_step: int,
    seed: int,
) -> None:
    rows = rows_of(sft, liked, disliked, dpo)
    replay = [row(f"r{i}", size=size + 1) for i, size in enumerate(replay_sizes)]
    by_epoch = [replay[epoch::epochs] for epoch in range(epochs)]
    steps = plan_steps(rows, by_epoch, tokens_per_step=tokens_per_step, epochs=float(epochs), seed=seed)
    assert names(steps) == Counter([one.name for one in rows] * epochs + [one.name for one in replay])
    assert all(steps)
    assert steps == plan_steps(
        rows, by_epoch, tokens_per_step=tokens_per_step, epochs=float(epochs), seed=seed
    )


def test_half_an_epoch_contains_half_of_the_rows() -> None:
    steps = plan_steps(rows_of([7] * 40, [], [], []), [], tokens_per_step=32, epochs=1.5, seed=1)
    assert sum(names(steps).values()) == 60
    assert set(names(steps).values()) == {1, 2}


@given(SIZES.filter(lambda sizes: len(sizes) > 20), st.integers(120, 600))
def test_steps_have_about_the_wanted_tokens(sizes: list[int], tokens_per_step: int) -> None:
    steps = plan_steps(rows_of(sizes, [], [], []), [], tokens_per_step=tokens_per_step, epochs=4, seed=2)
    tokens = [sum(one.tokens for one in step) for step in steps]
    assert len(steps) == max(1, round(sum(tokens) / tokens_per_step))
    assert all(abs(one - sum(tokens) / len(tokens)) <= 61 for one in tokens), "at most a row more or less"


def test_every_step_mixes_the_objectives_in_their_share() -> None:
    rows = rows_of([10] * 80, [10] * 20, [10] * 20, [5] * 20)
    steps = plan_steps(rows, [], tokens_per_step=11 * 16, epochs=1, seed=3)
    assert len(steps) == 10 - 1  # 1550 tokens
    for step in steps:
        kinds = Counter(one.objective for one in step)
        assert 8 <= kinds["sft"] <= 10
        assert 4 <= kinds["kto"] <= 6
        assert 2 <= kinds["dpo"] <= 3


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3))
def test_judgements_come_in_groups_with_both_labels(liked: int, disliked: int, seed: int) -> None:
    rows = rows_of([10] * 200, [10] * liked, [10] * disliked, [])
    steps = plan_steps(rows, [], tokens_per_step=88, epochs=1, seed=seed)
    groups = [[one.liked for one in step if one.objective == "kto"] for step in steps]
    groups = [group for group in groups if group]
    assert all(len(group) > 1 for group in groups), "one judgement has no KL term"
    both = sum(len(set(group)) == 2 for group in groups)
    assert both >= 0.6 * min(liked, disliked, len(groups))
    assert len({len(step) // 20 for step in steps}) == 1, "no step is filled with judgements"


@given(st.lists(st.integers(1, 200), min_size=1, max_size=30), st.integers(1, 4))
def test_processes_share_a_step_without_overlap(sizes: list[int], processes: int) -> None:
    step = tuple(rows_of(sizes, [], [], []))
    shares = shares_of_processes(step, processes)
    assert Counter(one for share in shares for one in share) == Counter(step)
    loads = [sum(one.tokens for one in share) for share in shares]
    assert max(loads) - min(loads) <= max(one.tokens for one in step)


@given(SIZES, SIZES, st.integers(1, 300), st.booleans())
def test_micro_batches_keep_the_limit_and_all_rows(
    sft: list[int], dpo: list[int], limit: int, padded: bool
) -> None:
    rows = rows_of(sft, [], [], dpo)
    groups = micro_batches(rows, limit, padded=padded)
    assert Counter(one for group in groups for one in group) == Counter(rows)
    for group in groups:
        sequences = [len(one.ids) for each in group for one in each.sequences]
        size = max(sequences) * len(sequences) if padded else sum(sequences)
        assert size <= limit or len(group) == 1
