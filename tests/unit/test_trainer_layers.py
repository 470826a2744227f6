"""Layers of the trainer: each folder imports only itself and the layers below it."""

from __future__ import annotations

from collections.abc import Mapping, Set

import pytest

from tests.unit.source_tree import below, imports

PACKAGE = "services.trainer"
LAYERS = (
    # Rules and tools without knowledge of datasets, models or runs.
    {"core"},
    {"files", "progress", "database"},
    # Functions of their arguments; settings are read only above them.
    {"dataset"},
    {"settings"},
    {"base"},
    # One run: its files and tables, its stages, the process that executes it.
    {"run"},
    {"training"},
    {"gate"},
    {"versions"},
    {"worker"},
    # Counts of what is collected, which decide when a run starts.
    {"new_data"},
    # The service: what operators, erasures and readers ask of it, and its loop.
    {"commands"},
    {"erasure"},
    {"api"},
    {"console_status", "consumer"},
    {"service"},
    {"__main__"},
)
"""Folders and modules of the trainer, the lowest layer first. Those of one layer do not import each other."""


def layer_name(module: str) -> str:
    """Return the folder or module directly below the trainer's package."""
    return module.removeprefix(f"{PACKAGE}.").split(".")[0]


def violations(imports_of: Mapping[str, Set[str]]) -> list[str]:
    """Return the imports that are not from the own folder or a lower layer, given module -> imported modules."""
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    found = []
    for module, imported in sorted(imports_of.items()):
        own = layer_name(module)
        for target in sorted(name for name in imported if name.startswith(f"{PACKAGE}.")):
            other = layer_name(target)
            if other != own and rank[other] >= rank[own]:
                found.append(f"{module} imports {target}")
    return found


def import_map() -> dict[str, Set[str]]:
    return {module: imports(module) for module in below(PACKAGE) if module != PACKAGE}


def test_every_part_of_the_trainer_has_a_layer() -> None:
    assert {layer_name(module) for module in import_map()} == {name for layer in LAYERS for name in layer}


def test_modules_import_only_lower_layers() -> None:
    assert violations(import_map()) == []


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("dataset.snapshot", "run.run_table"),
        ("dataset.comment_rewriter", "settings"),
        ("database", "dataset.batch_table"),
        ("files", "progress"),
        ("training.train", "gate.verdict"),
        ("core.trigger", "service"),
    ],
)
def test_import_of_a_higher_layer_is_found(module: str, imported: str) -> None:
    """Negative control, with synthetic imports."""
    modules = {
        f"{PACKAGE}.{module}": {f"{PACKAGE}.{imported}", "json"},
        f"{PACKAGE}.api.gate_routes": {f"{PACKAGE}.run.run_table", f"{PACKAGE}.api.event_trace"},
    }
    assert violations(modules) == [f"{PACKAGE}.{module} imports {PACKAGE}.{imported}"]
