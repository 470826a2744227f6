"""Which rows each optimiser step trains: about the same number of tokens, with all objectives in their share.

Each row trains once per epoch, mixed with the replay rows of that epoch (`batch_order.py`). The rows of each objective
are put in a random order and cut into as many parts as there are steps, so every step mixes the objectives as the run
does. Judgements come in groups with both labels where the data allow it.

All functions are deterministic, so a resumed run continues in the same order, and each process of a distributed run
knows what the others train.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from services.trainer.training.batch_order import interleave
from services.trainer.training.rows import TokenizedRow

T = TypeVar("T")
Step: TypeAlias = tuple[TokenizedRow, ...]
"""The rows of one optimiser step."""


def plan_steps(
    rows: Sequence[TokenizedRow],
    replay: Sequence[Sequence[TokenizedRow]],
    *,
    tokens_per_step: int,
    epochs: float,
    seed: int,
) -> list[Step]:
    """Return the steps of a run.

    Args:
        rows: Rows that train once per epoch; a fraction of an epoch trains that fraction of them.
        replay: Rows that train as well, by epoch.
        tokens_per_step: Tokens of a step, on average.
        epochs: Passes over `rows`.
        seed: Seed of the order.

    """
    rng = random.Random(seed)  # noqa: S311 - not used for security
    judged = [row for row in rows if row.objective == "kto"]
    orders = [
        _epochs([row for row in rows if row.objective == "sft"], replay, epochs, rng),
        interleave(
            [
                _epochs([row for row in judged if row.liked], [], epochs, rng),
                _epochs([row for row in judged if not row.liked], [], epochs, rng),
            ]
        ),
        _epochs([row for row in rows if row.objective == "dpo"], [], epochs, rng),
    ]
    tokens = sum(row.tokens for order in orders for row in order)
    if not tokens:
        return []
    steps = max(1, round(tokens / tokens_per_step))
    planned: list[list[TokenizedRow]] = [[] for _ in range(steps)]
    sft, kto, dpo = orders
    for order, parts in ((sft, steps), (kto, _judgement_groups(kto, steps)), (dpo, steps)):
        for number, part in enumerate(cut(order, parts)):
            planned[number * steps // parts] += part
    return [tuple(step) for step in planned if step]


def _epochs(
    rows: Sequence[TokenizedRow],
    replay: Sequence[Sequence[TokenizedRow]],
    epochs: float,
    rng: random.Random,
) -> list[TokenizedRow]:
    """Return rows in a random order for each epoch, mixed with its replay rows."""
    count = max(1, math.ceil(epochs))
    ordered: list[TokenizedRow] = []
    for epoch in range(count):
        fraction = min(1.0, epochs - epoch)
        pool = [
            *rng.sample(list(rows), round(fraction * len(rows))),
            *(replay[epoch] if epoch < len(replay) else ()),
        ]
        rng.shuffle(pool)
        ordered += pool
    return ordered


def _judgement_groups(order: Sequence[TokenizedRow], steps: int) -> int:
    """Return into how many groups judgements are divided, of at least two where there are two.

    With one judgement, KTO cannot estimate how far the model has moved. Groups become up to twice as large if each then
    has both labels.
    """
    rarer = min(sum(row.liked for row in order), sum(not row.liked for row in order))
    groups = max(1, min(steps, len(order) // 2))
    return min(groups, max(rarer, math.ceil(groups / 2))) if rarer else groups


def cut(order: Sequence[TokenizedRow], parts: int) -> list[list[TokenizedRow]]:
    """Return rows in `parts` consecutive parts with about the same number of tokens. A part may be empty."""
    total = sum(row.tokens for row in order)
    divided: list[list[TokenizedRow]] = [[] for _ in range(parts)]
    before = 0
    for row in order:
        middle = before + row.tokens / 2
        divided[min(parts - 1, int(middle * parts / total))].append(row)
        before += row.tokens
    return divided


def shares_of_processes(step: Step, processes: int) -> list[list[TokenizedRow]]:
    """Return the rows of a step that each process trains. Processes get about the same number of tokens.

    A process has no rows if the step has fewer rows than there are processes.
    """
    shares: list[list[TokenizedRow]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for row in sorted(step, key=lambda row: -row.tokens):
        lightest = loads.index(min(loads))
        shares[lightest].append(row)
        loads[lightest] += row.tokens
    return shares


def micro_batches(rows: Sequence[TokenizedRow], limit: int, *, padded: bool) -> list[list[TokenizedRow]]:
    """Return rows in groups of at most `limit` tokens, padding included; a larger row is a group of its own."""
    groups: list[list[TokenizedRow]] = []
    width = sequences = tokens = 0
    for row in sorted(rows, key=lambda row: row.tokens):
        longest = max(len(one.ids) for one in row.sequences)
        width, sequences = max(width, longest), sequences + len(row.sequences)
        tokens += row.tokens
        if groups and (width * sequences if padded else tokens) <= limit:
            groups[-1].append(row)
        else:
            groups.append([row])
            width, sequences, tokens = longest, len(row.sequences), row.tokens
    return groups
