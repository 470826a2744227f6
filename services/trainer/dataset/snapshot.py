"""A run's dataset, frozen: what trains, what measures, what is held and why, by content (I5).

Besides held-out users some wordings are set aside: the gate may count wins only on wordings that no snapshot has, and
users of one product ask much the same. So where held-out users' wordings are too few, wordings they share with others
are reserved, in an order fixed by a keyed hash, until there are `TARGET_ITEMS` items, and never more than
`RESERVED_SHARE` of a group's wordings. A row whose question is a near-duplicate of a reserved one does not train.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from services.trainer.dataset.objectives import Objective, enough_for_kto
from services.trainer.dataset.rewrite_cache import Rewrite, apply_rewrites
from services.trainer.dataset.similarity import (
    near_duplicates,
    near_duplicates_in,
    normalised,
    question_similarity,
)
from services.trainer.files import write_whole
from shared.events import canonical_json, sha256
from shared.versions import DatasetRef

RESERVED_SHARE = 0.4
TARGET_ITEMS = 40
JUDGED_GROUP = -1
TRAINED_FACT = 0.24
"""A held-out question at least so like a trained one asks for something trained (`similarity.question_similarity`)."""

TRAIN_ROWS, HELDOUT_ROWS, SNAPSHOT = "train.parquet", "heldout.parquet", "snapshot.json"
ASKED_BY = "asked_by"
"""A column that snapshots of older releases lack, as they may lack `objective` and `label`: all of those is SFT."""
UNENDED_COLUMNS = ("unended", "original_unended")
"""Columns that older ones lack, too."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`train` trains. `measure` is what held-out users said: agreed corrections, judgements, preferences. `through`: as
    in `DatasetRef`."""

    train: tuple[GroupedRow, ...]
    measure: tuple[GroupedRow, ...]
    held: tuple[QuarantinedRow, ...]
    through: Mapping[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Content hash over the canonical rows that train, in order of identity. Who asked is not part of it: it
        trains nothing. Nor is an objective that older releases knew no other of: their snapshots keep their hash."""
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
        return DatasetRef(
            digest=self.digest(),
            examples=len(self.train),
            users=len({one.row.user_id for one in self.train}),
            through=dict(self.through),
            tokens=tokens,
        )


def build(
    line: str,
    examples: Sequence[Example],
    through: Mapping[str, int],
    *,
    known: Sequence[str] = (),
    fits: Callable[[Row], bool] = lambda row: True,
    comments: CommentMode = "hold",
    revised: Mapping[str, Rewrite] | None = None,
    kto_least: int = KTO_LEAST,
) -> Snapshot:
    """Verifies, splits and freezes. `known`: questions of the stable version's snapshot. `fits`: whether a row is
    within the token limit. `revised`: what the reviser made of comments, by the row's identity (`rewrite_cache.py`);
    None leaves each comment in its revision's place, for who only counts. `kto_least`: of the rarer label, for KTO. A
    function of its arguments alone, in whatever order the examples come."""
    rows, held = usable_rows(examples, comments)
    training, measuring = split_by_holdout(line, rows)
    if comments == "revise" and revised is not None:
        training, unrevised = apply_rewrites(training, revised)
        held += unrevised
    mute = [row for row in measuring if row.kind == "comment"]
    held += [
        QuarantinedRow(row.response_id, row.event_id, "held out: a comment measures nothing") for row in mute
    ]
    measuring = [row for row in measuring if row.kind != "comment"]
    long = {row.identity: row for row in (*training, *measuring) if not _fits(row, fits)}
    held += [
        QuarantinedRow(row.response_id, row.event_id, "tokens: more than a run takes")
        for row in long.values()
    ]
    kept, disputed = apply_agreement([row for row in training if row.identity not in long], comments)
    measure, doubtful = apply_agreement([row for row in measuring if row.identity not in long])
    asked = [one.row.question for one in measure if one.row.kind == "correction"]
    reserved = reserved_wordings(line, asked, kept, known)
    apart = [] if not reserved else near_duplicates([one.row.question for one in kept], sorted(reserved))
    set_aside = [one.row for one, away in zip(kept, apart, strict=False) if away]
    if reserved:
        kept = [one for one, away in zip(kept, apart, strict=True) if not away]
    kept, over = _fair(kept, line)
    kept, unpaired = assign_objectives(kept, kto_least)
    held += disputed + doubtful + over + unpaired
    held += [
        QuarantinedRow(row.response_id, row.event_id, "reserved: its wording measures versions")
        for row in set_aside
    ]
    held.sort(key=lambda one: (one.response_id, one.event_id, one.reason))
    return Snapshot(tuple(kept), tuple(measure), tuple(held), dict(through))


def _fits(row: Row, fits: Callable[[Row], bool]) -> bool:
    """Of a pair both answers are read."""
    return fits(row) and (row.objective != "dpo" or fits(replace(row, answer=row.original)))


def _fair(rows: Sequence[GroupedRow], line: str) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Each user's share of each objective's rows: a press of a thumb costs less than a correction, and who pressed
    many does not crowd out what was written."""
    parts: dict[Objective, list[GroupedRow]] = defaultdict(list)
    for one in rows:
        parts[one.row.objective].append(one)
    kept, held = [], []
    for part in parts.values():
        left, over = limit_per_user(part, line)
        kept += left
        held += over
    return sorted(kept, key=lambda one: one.row.identity), held


def assign_objectives(
    rows: Sequence[GroupedRow], kto_least: int
) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Judgements train by KTO where there is enough of the rarer label; else the liked answers by SFT, and the
    disliked ones wait, for nobody knows what would have been right instead."""
    labels = [one.row.label for one in rows if one.row.objective == "kto"]
    liked, disliked = labels.count(True), labels.count(False)
    if enough_for_kto(liked, disliked, kto_least):
        return list(rows), []
    kept, held = [], []
    for one in rows:
        if one.row.objective != "kto":
            kept.append(one)
        elif one.row.label:
            kept.append(replace(one, row=replace(one.row, objective="sft")))
        else:
            why = f"{one.row.kind}: disliked; KTO needs {kto_least} of each, and SFT trains the liked alone"
            held.append(QuarantinedRow(one.row.response_id, one.row.event_id, why))
    return kept, held


def reserved_wordings(
    line: str, asked: Sequence[str], training: Sequence[GroupedRow], known: Sequence[str]
) -> set[str]:
    """The wordings of held-out users that are to stay out of training, so that the gate has something to count. All
    that is no claim to an answer is one group here: of its wordings, too, most go on training."""
    taken = [one.row.question for one in training]
    seen = near_duplicates(asked, [*taken, *known])
    wordings_of: dict[int, set[str]] = defaultdict(set)
    groups_of: dict[str, set[int]] = defaultdict(set)
    for one in training:
        group = one.group if one.row.objective == "sft" else JUDGED_GROUP
        wordings_of[group].add(normalised(one.row.question))
        groups_of[normalised(one.row.question)].add(group)
    items = sum(not known_wording for known_wording in seen)
    spent: dict[int, set[str]] = defaultdict(set)
    reserved: set[str] = set()
    too_late = near_duplicates(asked, list(known)) if known else [False] * len(asked)
    candidates = {
        text for text, is_seen, late in zip(asked, seen, too_late, strict=True) if is_seen and not late
    }
    ordered = sorted(candidates, key=lambda text: (hash_fraction(line, normalised(text)), text))
    wordings = sorted(groups_of)
    for text, positions in zip(ordered, near_duplicates_in(ordered, wordings), strict=True):
        if items >= TARGET_ITEMS:
            break
        close = {wordings[position] for position in positions}
        cost: dict[int, set[str]] = defaultdict(set)
        for wording in close:
            for group in groups_of[wording]:
                cost[group].add(wording)
        if any(len(spent[g] | gone) > RESERVED_SHARE * len(wordings_of[g]) for g, gone in cost.items()):
            continue
        for group, gone in cost.items():
            spent[group] |= gone
        reserved.add(text)
        items += sum(normalised(other) == normalised(text) for other in asked)
    return reserved


def asks_for_trained_fact(measure: Sequence[GroupedRow], trained: Sequence[str]) -> list[bool]:
    """For each held-out correction, whether its group (formed among held-out users alone, so that what was trained
    cannot choose its own judges) holds a question like a trained one."""
    if not measure or not trained:
        return [False] * len(measure)
    asked = [one.row.question for one in measure]
    distinct = sorted(set(trained))
    closest = question_similarity(asked, distinct).max(axis=1).toarray().ravel()
    seen = {one.group for one, value in zip(measure, closest, strict=True) if value >= TRAINED_FACT}
    return [one.group in seen for one in measure]


def fields_of(one: GroupedRow) -> dict[str, Any]:
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
    parts = dict(fields)
    group = parts.pop("group")
    parts["messages"] = tuple((role, content) for role, content in json.loads(parts["messages"]))
    return GroupedRow(Row(**parts), group)


_TEXT = ("response_id", "event_id", "user_id", "messages", "original", "answer", "kind", ASKED_BY)
_WHOLE = ("revision", "occurred_ms", "group")
COLUMNS = pa.schema(
    [(name, pa.string()) for name in _TEXT]
    + [(name, pa.int64()) for name in _WHOLE]
    + [("objective", pa.string()), ("label", pa.bool_())]
    + [(name, pa.bool_()) for name in UNENDED_COLUMNS]
)


def to_parquet(rows: Sequence[GroupedRow], *, names_askers: bool = True) -> bytes:
    """`names_askers=False`: as an older release wrote it, for rows of which nobody knows who asked."""
    table = pa.Table.from_pylist([fields_of(one) for one in rows], schema=COLUMNS)
    if not names_askers:
        table = table.drop_columns([ASKED_BY])
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def write(folder: Path, snapshot: Snapshot, tokens: int) -> DatasetRef:
    """Both files, then the mark: what has no mark is not there."""
    ref = snapshot.ref(tokens)
    write_whole(folder / TRAIN_ROWS, to_parquet(snapshot.train))
    write_whole(folder / HELDOUT_ROWS, to_parquet(snapshot.measure))
    mark = {
        "dataset": ref.model_dump(mode="json"),
        "measuring": len(snapshot.measure),
        "held": count_reasons(snapshot.held),
        "quarantine": [[one.response_id, one.event_id, one.reason] for one in snapshot.held],
    }
    write_whole(folder / SNAPSHOT, json.dumps(mark, sort_keys=True).encode())
    return ref


def read_ref(folder: Path) -> DatasetRef:
    return DatasetRef.model_validate(json.loads((folder / SNAPSHOT).read_bytes())["dataset"])


def read_quarantine(folder: Path) -> list[tuple[str, str, str]]:
    """(response_id, event_id, reason) of what is held back."""
    return [tuple(one) for one in json.loads((folder / SNAPSHOT).read_bytes())["quarantine"]]


def read_rows(folder: Path, name: str = TRAIN_ROWS) -> list[GroupedRow]:
    return [row_from_fields(fields) for fields in pq.read_table(folder / name).to_pylist()]


def names_askers(folder: Path, name: str = TRAIN_ROWS) -> bool:
    """Whether its rows say who asked. False for what an older release wrote."""
    return ASKED_BY in pq.read_schema(folder / name).names


def is_complete(folder: Path) -> bool:
    return (folder / SNAPSHOT).exists()
