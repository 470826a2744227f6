"""Differences of two versions in recipe, rows, gate figures, base and software. Ids and counts only, no text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from services.trainer.dataset.snapshot_files import fields_of
from services.trainer.versions.lineage import Json, LineRecords, read_snapshot_state
from shared.adapters.artifact_manifest import LINEAGE_FILE
from shared.errors import LoopwrightError
from shared.versions import Figure, ModelVersion

MAX_IDS: Final = 50
"""Maximum number of rows listed per kind of difference. All are counted."""
FetchArtifact = Callable[[ModelVersion], Path]
"""Returns the folder of a version's verified artifact. Raises `LoopwrightError`."""


def diff_versions(folder: Path, published: LineRecords, fetch: FetchArtifact, one: str, other: str) -> Json:
    """Return the differences of two versions. `folder` contains the runs' folders. Raises `UnknownVersion`."""
    first, second = published.find(one), published.find(other)
    before, after = artifact_lineage(first, fetch), artifact_lineage(second, fetch)
    return {
        "one": _head(first),
        "other": _head(second),
        "same_base": first.base == second.base,
        "recipe": changed(before.get("recipe", {}), after.get("recipe", {})),
        "software": changed(_environment(before), _environment(after)),
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


def artifact_lineage(version: ModelVersion, fetch: FetchArtifact) -> Json:
    """Return the lineage file of a version's artifact; empty for a base, and if the artifact is not available."""
    if version.ref.kind == "base":
        return {}
    try:
        lineage: Json = json.loads((fetch(version) / LINEAGE_FILE).read_bytes())
    except (LoopwrightError, OSError):
        return {}
    return lineage


def _environment(lineage: Mapping[str, Any]) -> Json:
    """Return software and machine as one mapping; for training that was resumed elsewhere, the last ones."""
    environments = lineage.get("environments") or [{}]
    return {**environments[-1].get("software", {}), **environments[-1].get("machine", {})}


def changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return name -> [value in `one`, value in `other`] of the entries that differ."""
    return {
        name: [one.get(name), other.get(name)]
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    }


def _sizes(version: ModelVersion) -> Json:
    return version.dataset.model_dump(mode="json") if version.dataset else {}


def rows_between(folder: Path, one: ModelVersion, other: ModelVersion) -> Json:
    """Return the rows that only `other` trained (`added`), only `one` (`removed`), or both differently (`changed`).

    `complete` is False if a snapshot has lost rows; the counts are then those of the remaining rows.
    """
    before, one_complete = _rows(folder, one)
    after, other_complete = _rows(folder, other)
    both = before.keys() & after.keys()
    keys_of = {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(key for key in both if before[key] != after[key]),
    }
    diff: Json = {
        "complete": one_complete and other_complete,
        "same": len(both) - len(keys_of["changed"]),
    }
    for name, keys in keys_of.items():
        ids = [{"response_id": response_id, "event_id": event_id} for response_id, event_id in keys[:MAX_IDS]]
        diff[name] = {"count": len(keys), "ids": ids}
    return diff


def _rows(folder: Path, version: ModelVersion) -> tuple[dict[tuple[str, str], Json], bool]:
    """Return (response, event) -> row of what a version trained on, and whether that is complete. None for a base."""
    if version.run_id is None:
        return {}, True
    left = read_snapshot_state(folder / version.run_id, version.dataset)
    return {
        (one.row.response_id, one.row.event_id): _content(fields_of(one)) for one in left.rows
    }, left.complete


def _content(fields: Json) -> Json:
    """Return the fields without the group number, which depends on all other rows."""
    return {name: value for name, value in fields.items() if name != "group"}


def figures_between(one: ModelVersion, other: ModelVersion) -> list[Json]:
    """Return the figures of both gates, matched by name."""
    first, second = _figures(one), _figures(other)
    return [
        {"name": name, "one": _figure(first.get(name)), "other": _figure(second.get(name))}
        for name in dict.fromkeys([*first, *second])
    ]


def _figures(version: ModelVersion) -> dict[str, Figure]:
    return {figure.name: figure for figure in version.gate.figures} if version.gate else {}


def _figure(figure: Figure | None) -> Json | None:
    return None if figure is None else figure.model_dump(mode="json", exclude={"name"}, exclude_none=True)
