"""Snapshot of a run's dataset, identified by its content (I5): rows that train, held-out rows, and the quarantine.

The gate counts wins only on wordings that are in no snapshot, but users of one product ask much the same. So if
held-out users asked too few wordings of their own, some wordings that they share with others are reserved for the gate:
in an order fixed by a keyed hash, until there are `TARGET_ITEMS` corrections that are items, and liked answers in
proportion, and at most `MAX_RESERVED_SHARE` of a group's wordings. Rows whose question is a near-duplicate of a
reserved one do not train.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from services.trainer.core.recipe import KTO_LEAST, CommentMode
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import Check, GroupedRow, QuarantinedRow, Row
from services.trainer.dataset.holdout import hash_fraction
from services.trainer.dataset.objectives import enough_for_kto
from services.trainer.dataset.rewrite_cache import Rewrite, apply_rewrites
from services.trainer.dataset.row_selection import (
    apply_agreement,
    limit_per_user,
    split_by_holdout,
    usable_rows,
)
from services.trainer.dataset.similarity import near_duplicates, near_duplicates_in, similar_to_any
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.dataset.token_budget import within_budget
from services.trainer.dataset.votes import ChangeRule
from services.trainer.dataset.words import normalised
from shared.feedback_kinds import ITEM, KIND_BY_NAME, Objective

MAX_RESERVED_SHARE: Final = 0.4
TARGET_ITEMS: Final = 40
QUESTIONS_TRIED: Final = 1000
"""Held-out questions that are compared first: if enough of them are new, no others need to be."""
JUDGED_GROUP: Final = -1
"""Group of all rows that make no claim, for reserving: most wordings of these must remain in training as well."""
TRAINED_FACT: Final = 0.24
"""Minimum similarity of a held-out question to a trained one for it to ask for something trained."""


def build(
    line: str,
    examples: Iterable[Example],
    through: Mapping[str, int],
    *,
    known: Sequence[str] = (),
    unfit: Check = lambda row: None,
    size: Callable[[Row], int] | None = None,
    comments: CommentMode = "hold",
    rewrites: Mapping[str, Rewrite] | None = None,
    kto_least: int = KTO_LEAST,
    change_rule: ChangeRule | None = None,
    max_tokens: int | None = None,
    token_budget: int = 0,
) -> Snapshot:
    """Filter, split and freeze examples. Depends only on the arguments, and not on the order of the examples.

    Args:
        line: name of the line, which keys all hashes.
        examples: the current examples of the line, read once.
        through: highest batch number read, by partition.
        known: questions in the snapshot of the stable version.
        unfit: why a row cannot train on this base, or None.
        size: tokens of what a row trains; without it, no token budget holds.
        comments: how comments train.
        rewrites: rewrites by row identity; None leaves comments as they are, for callers that only count.
        kto_least: minimum rows of the rarer label for KTO.
        change_rule: when newer votes about a fact outweigh older ones.
        max_tokens: longest row; `unfit` counts, this leaves out at once what cannot fit.
        token_budget: most tokens of the rows that train (`token_budget.py`); 0 means no limit.

    """
    rows, quarantined = usable_rows(examples, comments, max_tokens=max_tokens)
    training, heldout = split_by_holdout(line, rows)
    if comments == "revise" and rewrites is not None:
        training, unusable = apply_rewrites(training, rewrites, max_tokens=max_tokens)
        quarantined += unusable
    fit, unfit_rows = _split_by_fit(training, unfit)
    agreed_heldout, not_evaluating = _evaluating_rows(heldout, unfit, change_rule)
    train, disputed = apply_agreement(fit, comments, change_rule)
    train, reserved = _without_reserved(line, train, agreed_heldout, known)
    train, over_share = _limit_per_objective(train, line)
    over_budget: list[QuarantinedRow] = []
    if size is not None:
        train, over_budget = within_budget(line, train, token_budget, size)
    train, without_objective = assign_objectives(train, kto_least)
    quarantined += unfit_rows + not_evaluating
    quarantined += disputed + reserved + over_share + over_budget + without_objective
    quarantined.sort(key=lambda one: (one.response_id, one.event_id, one.reason))
    return Snapshot(tuple(train), tuple(agreed_heldout), tuple(quarantined), dict(through))


def held_out_rows(
    line: str,
    examples: Iterable[Example],
    *,
    unfit: Check = lambda row: None,
    comments: CommentMode = "hold",
    change_rule: ChangeRule | None = None,
    max_tokens: int | None = None,
) -> list[GroupedRow]:
    """Return the held-out rows of the snapshot that `build` makes of the same arguments.

    They do not depend on what trains, so they can be newer than the rows that a version was trained on.
    """
    rows, _ = usable_rows(examples, comments, max_tokens=max_tokens)
    _, heldout = split_by_holdout(line, rows)
    return _evaluating_rows(heldout, unfit, change_rule)[0]


def _evaluating_rows(
    heldout: Sequence[Row], unfit: Check, change_rule: ChangeRule | None
) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Return the rows of held-out users that can evaluate versions, and the others."""
    cannot = [
        QuarantinedRow.of(row, f"held out: a {row.kind} cannot evaluate versions")
        for row in heldout
        if KIND_BY_NAME[row.kind].matcher is None
    ]
    fit, unfit_rows = _split_by_fit(
        [row for row in heldout if KIND_BY_NAME[row.kind].matcher is not None], unfit
    )
    agreed, disputed = apply_agreement(fit, rule=change_rule)
    return agreed, cannot + unfit_rows + disputed


def _split_by_fit(rows: Sequence[Row], unfit: Check) -> tuple[list[Row], list[QuarantinedRow]]:
    """Return the rows that the base can train or answer, and the others with their reason."""
    fit, quarantined = [], []
    for row in rows:
        reason = unfit(row)
        if reason is None:
            fit.append(row)
        else:
            quarantined.append(QuarantinedRow.of(row, reason))
    return fit, quarantined


def _without_reserved(
    line: str, train: Sequence[GroupedRow], heldout: Sequence[GroupedRow], known: Sequence[str]
) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    questions = [one.row.question for one in heldout if KIND_BY_NAME[one.row.kind].matcher == ITEM]
    liked = [one.row.question for one in heldout if one.row.label]
    reserved = reserved_wordings(line, questions, train, known, liked)
    if not reserved:
        return list(train), []
    is_reserved = near_duplicates([one.row.question for one in train], reserved)
    kept = [one for one, away in zip(train, is_reserved, strict=True) if not away]
    removed = [one.row for one, away in zip(train, is_reserved, strict=True) if away]
    return kept, [QuarantinedRow.of(row, "reserved: its wording evaluates versions") for row in removed]


def _limit_per_objective(
    rows: Sequence[GroupedRow], line: str
) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Limit each user's share within each objective, so that many thumbs do not displace a user's corrections."""
    by_objective: dict[Objective, list[GroupedRow]] = defaultdict(list)
    for one in rows:
        by_objective[one.row.objective].append(one)
    kept, quarantined = [], []
    for part in by_objective.values():
        within, over = limit_per_user(part, line)
        kept += within
        quarantined += over
    return sorted(kept, key=lambda one: one.row.identity), quarantined


def assign_objectives(
    rows: Sequence[GroupedRow], kto_least: int
) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Keep KTO if there are enough rows of the rarer label; otherwise train liked answers by SFT.

    Disliked answers are then quarantined: what would have been right instead is not known.
    """
    labels = [one.row.label for one in rows if one.row.objective == "kto"]
    if enough_for_kto(labels.count(True), labels.count(False), kto_least):
        return list(rows), []
    kept, quarantined = [], []
    for one in rows:
        if one.row.objective != "kto":
            kept.append(one)
        elif one.row.label:
            kept.append(replace(one, row=replace(one.row, objective="sft")))
        else:
            reason = f"{one.row.kind}: disliked; KTO needs {kto_least} rows per label, and SFT trains liked ones only"
            quarantined.append(QuarantinedRow.of(one.row, reason))
    return kept, quarantined


def reserved_wordings(
    line: str,
    questions: Sequence[str],
    train: Sequence[GroupedRow],
    known: Sequence[str],
    liked: Sequence[str] = (),
) -> set[str]:
    """Return the questions of held-out users whose wordings must not train, so that the gate has enough items.

    Args:
        line: Name of the line.
        questions: Questions of held-out corrections.
        train: Rows that may train.
        known: Questions of the stable version's snapshot, which count no win.
        liked: Questions of answers that held-out users liked. At most as many become items as corrections do, so the
            gate does not consist of what stable did wrong.
    """
    reservation = _Reservation(line, train, known)
    items = reservation.reserve(questions, TARGET_ITEMS)
    if questions and liked:
        some = sorted(liked, key=lambda text: (hash_fraction(line, text), text))[:QUESTIONS_TRIED]
        reservation.reserve(some, min(items, round(items * len(liked) / len(questions))))
    return reservation.reserved


class _Reservation:
    """Wordings that are reserved for the gate, and what they cost each group of training rows."""

    def __init__(self, line: str, train: Sequence[GroupedRow], known: Sequence[str]) -> None:
        self.reserved: set[str] = set()
        self._line = line
        self._known = known
        self._taken = [one.row.question for one in train]
        self._wordings_of: dict[int, set[str]] = defaultdict(set)
        self._groups_of: dict[str, set[int]] = defaultdict(set)
        self._spent: dict[int, set[str]] = defaultdict(set)
        for one in train:
            group = one.group if one.row.objective == "sft" else JUDGED_GROUP
            self._wordings_of[group].add(normalised(one.row.question))
            self._groups_of[normalised(one.row.question)].add(group)

    def reserve(self, questions: Sequence[str], target: int) -> int:
        """Reserve wordings until `target` of the questions are items, and return how many are, at most `target`."""
        known = [*self._taken, *self._known]
        if len(questions) > QUESTIONS_TRIED:
            some = sorted(questions, key=lambda text: (hash_fraction(self._line, text), text))[
                :QUESTIONS_TRIED
            ]
            if near_duplicates(some, known).count(False) >= target:
                return target
        before = {normalised(text) for text in self.reserved}
        seen = [
            trained and normalised(text) not in before
            for text, trained in zip(questions, near_duplicates(questions, known), strict=True)
        ]
        items = seen.count(False)
        if items >= target:
            return target
        in_stable = near_duplicates(questions, self._known)
        candidates = {
            text
            for text, trained, stable in zip(questions, seen, in_stable, strict=True)
            if trained and not stable
        }
        ordered = sorted(candidates, key=lambda text: (hash_fraction(self._line, normalised(text)), text))
        wordings = sorted(self._groups_of)
        for text, positions in zip(ordered, near_duplicates_in(ordered, wordings), strict=True):
            if items >= target:
                break
            if self._take(wordings[position] for position in positions):
                self.reserved.add(text)
                items += sum(normalised(other) == normalised(text) for other in questions)
        return min(items, target)

    def _take(self, wordings: Iterable[str]) -> bool:
        """Take wordings away from their groups, and return True, unless a group would lose too many."""
        cost: dict[int, set[str]] = defaultdict(set)
        for wording in wordings:
            for group in self._groups_of[wording]:
                cost[group].add(wording)
        for group, lost in cost.items():
            if len(self._spent[group] | lost) > MAX_RESERVED_SHARE * len(self._wordings_of[group]):
                return False
        for group, lost in cost.items():
            self._spent[group] |= lost
        return True


def asks_for_trained_fact(heldout: Sequence[GroupedRow], trained: Sequence[str]) -> list[bool]:
    """Return for each held-out correction whether its group contains a question similar to a trained one.

    Groups are formed among held-out users only, so that training data cannot choose how it is evaluated.
    """
    if not heldout or not trained:
        return [False] * len(heldout)
    asks = similar_to_any([one.row.question for one in heldout], sorted(set(trained)), TRAINED_FACT)
    groups = {one.group for one, similar in zip(heldout, asks, strict=True) if similar}
    return [one.group in groups for one in heldout]
