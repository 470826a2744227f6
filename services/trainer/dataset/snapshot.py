"""Snapshot of a run's dataset, identified by its content (I5): rows that train, held-out rows, and the quarantine.

The gate counts wins only on wordings that are in no snapshot, but users of one product ask much the same. So if
held-out users asked too few wordings of their own, some wordings that they share with others are reserved for the gate:
in an order fixed by a keyed hash, until there are `TARGET_ITEMS` items, and at most `MAX_RESERVED_SHARE` of a group's
wordings. Rows whose question is a near-duplicate of a reserved one do not train.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from services.trainer.core.recipe import KTO_LEAST, CommentMode
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import (
    GroupedRow,
    QuarantinedRow,
    Row,
    apply_agreement,
    count_reasons,
    limit_per_user,
    split_by_holdout,
    usable_rows,
)
from services.trainer.dataset.holdout import hash_fraction
from services.trainer.dataset.objectives import enough_for_kto
from services.trainer.dataset.rewrite_cache import Rewrite, apply_rewrites
from services.trainer.dataset.similarity import near_duplicates, near_duplicates_in, question_similarity
from services.trainer.dataset.words import normalised
from services.trainer.files import write_whole
from shared.events import canonical_json, sha256
from shared.feedback_kinds import ITEM, KIND_BY_NAME, Objective
from shared.versions import DatasetRef

MAX_RESERVED_SHARE: Final = 0.4
TARGET_ITEMS: Final = 40
JUDGED_GROUP: Final = -1
"""Group of all rows that make no claim, for reserving: most wordings of these must remain in training as well."""
TRAINED_FACT: Final = 0.24
"""Minimum similarity of a held-out question to a trained one for it to ask for something trained."""

TRAIN_ROWS: Final = "train.parquet"
HELDOUT_ROWS: Final = "heldout.parquet"
SNAPSHOT: Final = "snapshot.json"
"""Written last: a folder without it has no snapshot."""
ASKED_BY: Final = "asked_by"
UNENDED_COLUMNS: Final = ("unended", "original_unended")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Rows that train, rows of held-out users, and what is quarantined. `through`: as in `DatasetRef`."""

    train: tuple[GroupedRow, ...]
    heldout: tuple[GroupedRow, ...]
    quarantined: tuple[QuarantinedRow, ...]
    through: Mapping[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the content hash of the rows that train, in order of identity.

        Excluded are columns that train nothing (who asked), and those that have their default.
        """
        rows = [fields_of(one) for one in self.train]
        for row in rows:
            del row[ASKED_BY]
            if row["label"] is None:
                del row["label"]
            if row["objective"] == "sft":
                del row["objective"]
            for name in UNENDED_COLUMNS:
                if not row[name]:
                    del row[name]
        return sha256(b"\n".join(map(canonical_json, rows)))

    def ref(self, tokens: int) -> DatasetRef:
        """Return the reference that versions publish. `tokens`: of all rows that train."""
        return DatasetRef(
            digest=self.digest(),
            examples=len(self.train),
            users=len({one.row.user_id for one in self.train}),
            through=dict(self.through),
            tokens=tokens,
        )


# --- building ---------------------------------------------------------------------------------------------------


def build(
    line: str,
    examples: Sequence[Example],
    through: Mapping[str, int],
    *,
    known: Sequence[str] = (),
    fits: Callable[[Row], bool] = lambda row: True,
    comments: CommentMode = "hold",
    rewrites: Mapping[str, Rewrite] | None = None,
    kto_least: int = KTO_LEAST,
) -> Snapshot:
    """Filter, split and freeze examples. Depends only on the arguments, and not on the order of the examples.

    Args:
        line: name of the line, which keys all hashes.
        examples: the current examples of the line.
        through: highest batch number read, by partition.
        known: questions in the snapshot of the stable version.
        fits: whether a row is within the token limit.
        comments: how comments train.
        rewrites: rewrites by row identity; None leaves comments as they are, for callers that only count.
        kto_least: minimum rows of the rarer label for KTO.

    """
    rows, quarantined = usable_rows(examples, comments)
    training, heldout = split_by_holdout(line, rows)
    if comments == "revise" and rewrites is not None:
        training, unusable = apply_rewrites(training, rewrites)
        quarantined += unusable
    quarantined += [
        QuarantinedRow.of(row, f"held out: a {row.kind} cannot evaluate versions")
        for row in heldout
        if KIND_BY_NAME[row.kind].matcher is None
    ]
    heldout = [row for row in heldout if KIND_BY_NAME[row.kind].matcher is not None]
    too_long = {row.identity: row for row in (*training, *heldout) if not _fits(row, fits)}
    quarantined += [
        QuarantinedRow.of(row, "tokens: longer than the limit of a run") for row in too_long.values()
    ]
    train, disputed = apply_agreement([row for row in training if row.identity not in too_long], comments)
    agreed_heldout, disputed_heldout = apply_agreement(
        [row for row in heldout if row.identity not in too_long]
    )
    train, reserved = _without_reserved(line, train, agreed_heldout, known)
    train, over_share = _limit_per_objective(train, line)
    train, without_objective = assign_objectives(train, kto_least)
    quarantined += disputed + disputed_heldout + reserved + over_share + without_objective
    quarantined.sort(key=lambda one: (one.response_id, one.event_id, one.reason))
    return Snapshot(tuple(train), tuple(agreed_heldout), tuple(quarantined), dict(through))


def _fits(row: Row, fits: Callable[[Row], bool]) -> bool:
    """Return whether each answer that the row trains fits."""
    return fits(row) and (row.objective != "dpo" or fits(replace(row, answer=row.original)))


def _without_reserved(
    line: str, train: Sequence[GroupedRow], heldout: Sequence[GroupedRow], known: Sequence[str]
) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    questions = [one.row.question for one in heldout if KIND_BY_NAME[one.row.kind].matcher == ITEM]
    reserved = reserved_wordings(line, questions, train, known)
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
    line: str, questions: Sequence[str], train: Sequence[GroupedRow], known: Sequence[str]
) -> set[str]:
    """Return the questions of held-out users whose wordings must not train, so that the gate has enough items.

    `known`: questions of the stable version's snapshot, which count no win.
    """
    taken = [one.row.question for one in train]
    seen = near_duplicates(questions, [*taken, *known])
    wordings_of: dict[int, set[str]] = defaultdict(set)
    groups_of: dict[str, set[int]] = defaultdict(set)
    for one in train:
        group = one.group if one.row.objective == "sft" else JUDGED_GROUP
        wordings_of[group].add(normalised(one.row.question))
        groups_of[normalised(one.row.question)].add(group)
    items = sum(not trained for trained in seen)
    in_stable = near_duplicates(questions, known)
    candidates = {
        text
        for text, trained, stable in zip(questions, seen, in_stable, strict=True)
        if trained and not stable
    }
    ordered = sorted(candidates, key=lambda text: (hash_fraction(line, normalised(text)), text))
    wordings = sorted(groups_of)
    spent: dict[int, set[str]] = defaultdict(set)
    reserved: set[str] = set()
    for text, positions in zip(ordered, near_duplicates_in(ordered, wordings), strict=True):
        if items >= TARGET_ITEMS:
            break
        cost: dict[int, set[str]] = defaultdict(set)
        for wording in (wordings[position] for position in positions):
            for group in groups_of[wording]:
                cost[group].add(wording)
        if any(
            len(spent[group] | lost) > MAX_RESERVED_SHARE * len(wordings_of[group])
            for group, lost in cost.items()
        ):
            continue
        for group, lost in cost.items():
            spent[group] |= lost
        reserved.add(text)
        items += sum(normalised(other) == normalised(text) for other in questions)
    return reserved


def asks_for_trained_fact(heldout: Sequence[GroupedRow], trained: Sequence[str]) -> list[bool]:
    """Return for each held-out correction whether its group contains a question similar to a trained one.

    Groups are formed among held-out users only, so that training data cannot choose how it is evaluated.
    """
    if not heldout or not trained:
        return [False] * len(heldout)
    similarity = question_similarity([one.row.question for one in heldout], sorted(set(trained)))
    closest = similarity.max(axis=1).toarray().ravel()
    groups = {one.group for one, value in zip(heldout, closest, strict=True) if value >= TRAINED_FACT}
    return [one.group in groups for one in heldout]


# --- on disk ----------------------------------------------------------------------------------------------------


def fields_of(one: GroupedRow) -> dict[str, Any]:
    """Return a row as the columns of a snapshot."""
    row = one.row
    return {
        "response_id": row.response_id,
        "revision": row.revision,
        "event_id": row.event_id,
        "user_id": row.user_id,
        "messages": json.dumps([list(message) for message in row.messages], ensure_ascii=False),
        "original": row.original,
        "answer": row.answer,
        "occurred_ms": row.occurred_ms,
        "kind": row.kind,
        "group": one.group,
        ASKED_BY: row.asked_by,
        "objective": row.objective,
        "label": row.label,
        "unended": row.unended,
        "original_unended": row.original_unended,
    }


def row_from_fields(fields: Mapping[str, Any]) -> GroupedRow:
    """Return the row of `fields_of`."""
    columns = dict(fields)
    group = columns.pop("group")
    columns["messages"] = tuple((role, content) for role, content in json.loads(columns["messages"]))
    return GroupedRow(Row(**columns), group)


_TEXT: Final = ("response_id", "event_id", "user_id", "messages", "original", "answer", "kind", ASKED_BY)
_INTEGER: Final = ("revision", "occurred_ms", "group")
COLUMNS: Final = pa.schema(
    [(name, pa.string()) for name in _TEXT]
    + [(name, pa.int64()) for name in _INTEGER]
    + [("objective", pa.string()), ("label", pa.bool_())]
    + [(name, pa.bool_()) for name in UNENDED_COLUMNS]
)


def to_parquet(rows: Sequence[GroupedRow]) -> bytes:
    """Return the rows as a Parquet file. Equal rows give equal bytes."""
    table = pa.Table.from_pylist([fields_of(one) for one in rows], schema=COLUMNS)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def write(folder: Path, snapshot: Snapshot, tokens: int) -> DatasetRef:
    """Write both files of rows and then `snapshot.json`, which marks the snapshot as complete."""
    ref = snapshot.ref(tokens)
    write_whole(folder / TRAIN_ROWS, to_parquet(snapshot.train))
    write_whole(folder / HELDOUT_ROWS, to_parquet(snapshot.heldout))
    summary = {
        "dataset": ref.model_dump(mode="json"),
        "measuring": len(snapshot.heldout),
        "held": count_reasons(snapshot.quarantined),
        "quarantine": [[one.response_id, one.event_id, one.reason] for one in snapshot.quarantined],
    }
    write_whole(folder / SNAPSHOT, json.dumps(summary, sort_keys=True).encode())
    return ref


def read_ref(folder: Path) -> DatasetRef:
    """Return the reference of a complete snapshot."""
    return DatasetRef.model_validate(json.loads((folder / SNAPSHOT).read_bytes())["dataset"])


def read_quarantine(folder: Path) -> list[tuple[str, str, str]]:
    """Return the quarantined events of a complete snapshot as (response_id, event_id, reason)."""
    return [tuple(entry) for entry in json.loads((folder / SNAPSHOT).read_bytes())["quarantine"]]


def read_rows(folder: Path, name: str = TRAIN_ROWS) -> list[GroupedRow]:
    """Return the rows of a snapshot's file."""
    return [row_from_fields(fields) for fields in pq.read_table(folder / name).to_pylist()]


def is_complete(folder: Path) -> bool:
    """Return whether the folder contains a complete snapshot."""
    return (folder / SNAPSHOT).exists()
