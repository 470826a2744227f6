"""What two versions differ in: recipe, rows, figures of the gate, base, software. Names and counts; no text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.trainer.dataset.snapshot import fields_of
from services.trainer.versions.lineage import Json, LineRecords, read_snapshot_state
from services.trainer.versions.model_card import LINEAGE_FILE
from shared.errors import LoopwrightError
from shared.versions import Figure, ModelVersion

NAMED = 50
"""Rows of each kind that are named; all are counted."""
Facts = Callable[[ModelVersion], Path]
"""The folder of a version's artifact, verified. Raises `LoopwrightError`."""


def diff_versions(folder: Path, published: LineRecords, facts: Facts, one: str, other: str) -> Json:
    """`folder` holds the runs' folders. Raises `UnknownVersion`."""
    first, second = published.find(one), published.find(other)
    told, also = facts_of(first, facts), facts_of(second, facts)
    return {
        "one": _head(first),
        "other": _head(second),
        "same_base": first.base == second.base,
        "recipe": changed(told.get("recipe", {}), also.get("recipe", {})),
        "software": changed(_flat(told), _flat(also)),
        "rows": rows_between(folder, first, second),
        "dataset": changed(_sizes(first), _sizes(second)),
        "figures": figures_between(first, second),
    }


def _head(version: ModelVersion) -> Json:
    gate = version.gate
    return {
        "version": version.ref.version,
        "base": version.base,
        "verdict": gate.verdict if gate else None,
        "gated_against": gate.gated_against if gate else None,
    }


def facts_of(version: ModelVersion, facts: Facts) -> Json:
    """What the artifact says of itself; nothing where it is the base's, or is not to be had."""
    if version.ref.kind == "base":
        return {}
    try:
        found: Json = json.loads((facts(version) / LINEAGE_FILE).read_bytes())
    except (LoopwrightError, OSError):
        return {}
    return found


def _flat(told: Mapping[str, Any]) -> Json:
    """Software and machine as one level of names. What was trained in several turns names the last."""
    environments = told.get("environments") or [{}]
    return {**environments[-1].get("software", {}), **environments[-1].get("machine", {})}


def changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    """By name: [here, there], of what differs."""
    return {
        name: [one.get(name), other.get(name)]
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    }


def _sizes(version: ModelVersion) -> Json:
    return version.dataset.model_dump(mode="json") if version.dataset else {}


def rows_between(folder: Path, one: ModelVersion, other: ModelVersion) -> Json:
    """Rows that only the other trained (`added`), only the first (`removed`), and both with another content
    (`changed`). `complete` is False where a snapshot has lost rows: then the counts are of what is left."""
    before, here = _rows(folder, one)
    after, there = _rows(folder, other)
    both = before.keys() & after.keys()
    found = {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(key for key in both if before[key] != after[key]),
    }
    told: Json = {"complete": here and there, "same": len(both) - len(found["changed"])}
    for name, keys in found.items():
        ids = [{"response_id": response_id, "event_id": event_id} for response_id, event_id in keys[:NAMED]]
        told[name] = {"count": len(keys), "ids": ids}
    return told


def _rows(folder: Path, version: ModelVersion) -> tuple[dict[tuple[str, str], Json], bool]:
    """What trained by (response, event), and whether it is all that did. The base was trained from nothing."""
    if version.run_id is None:
        return {}, True
    left = read_snapshot_state(folder / version.run_id, version.dataset)
    return {
        (one.row.response_id, one.row.event_id): _content(fields_of(one)) for one in left.rows
    }, left.complete


def _content(fields: Json) -> Json:
    """Without what says nothing of the row itself: the number of its group, which depends on all others."""
    return {name: value for name, value in fields.items() if name != "group"}


def figures_between(one: ModelVersion, other: ModelVersion) -> list[Json]:
    """Figures of both gates side by side, by name."""
    here, there = _figures(one), _figures(other)
    return [
        {"name": name, "one": _figure(here.get(name)), "other": _figure(there.get(name))}
        for name in dict.fromkeys([*here, *there])
    ]


def _figures(version: ModelVersion) -> dict[str, Figure]:
    return {figure.name: figure for figure in version.gate.figures} if version.gate else {}


def _figure(figure: Figure | None) -> Json | None:
    return None if figure is None else figure.model_dump(mode="json", exclude={"name"}, exclude_none=True)
