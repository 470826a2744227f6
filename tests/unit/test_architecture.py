"""The map of the repository, held by its tests: who may import whom, and who writes which topic."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from typing import Any

import pytest

from tests.unit.source_tree import PACKAGES, ROOT, below, imports, modules, reached, run_at_import, services

HEAVY = {"torch", "transformers", "peft", "trl", "datasets"}
SERVERS = {"fastapi", "starlette", "uvicorn", "faust", "mode"}
CLIENTS = {
    "AdminClient", "App", "AsyncClient", "AsyncOpenAI", "Client", "Consumer", "ConnectionPool", "FakeRedis", "OpenAI",
    "Producer", "Redis", "from_url", "from_pretrained", "connect", "create_connection", "socket", "urlopen", "Popen",
    "Thread", "load",
}  # fmt: skip
"""Calls that open a connection, start something or read the environment, whatever they are imported from."""


def top(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


# --- who may import whom ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", services())
def test_a_service_never_imports_another(service: str) -> None:
    others = {
        name: by for name, by in reached(below(f"services.{service}")).items() if top(name) == "services"
    }
    foreign = {name: by for name, by in others.items() if name.split(".")[1:2] not in ([], [service])}
    assert foreign == {}


def test_shared_imports_nothing_that_stands_on_it() -> None:
    assert [
        name for name in reached(below("shared")) if top(name) in {"services", "deploy", "examples", "tests"}
    ] == []


@pytest.mark.parametrize("package", ["shared", "loopwright"])
def test_no_model_library_comes_in_by_way_of(package: str) -> None:
    assert {name: by for name, by in reached(below(package)).items() if top(name) in HEAVY} == {}


def test_the_sdk_stands_alone() -> None:
    names = {top(name) for name in reached(below("loopwright"))}
    assert names.isdisjoint({"services", "shared", "deploy", "examples"} | SERVERS)


def test_services_do_not_know_how_they_are_deployed_or_tested() -> None:
    assert [name for name in reached(below("services")) if top(name) in {"deploy", "examples", "tests"}] == []


def declared(extra: str) -> set[str]:
    """Distributions that an extra brings by name, with what every service has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"].get(extra, [])]
    return {normal(re.split(r"[\s<>=!~;\[]", requirement)[0]) for requirement in wanted}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@pytest.mark.parametrize("service", services())
def test_a_service_imports_only_what_its_extra_declares(service: str) -> None:
    distributions: dict[str, Any] = dict(packages_distributions())
    undeclared = {}
    for name, by in reached(below(f"services.{service}")).items():
        if top(name) in {*PACKAGES, "tests"} or top(name) in sys.stdlib_module_names or by not in modules():
            continue
        providers = {normal(d) for d in distributions.get(top(name), [f"{top(name)} (not installed)"])}
        if not providers & declared(service):
            undeclared[name] = by
    assert undeclared == {}


# --- nothing happens at import ----------------------------------------------------------------------------------


def test_no_module_builds_a_client_or_reads_settings_while_it_is_imported() -> None:
    built = [
        f"{module}:{call.lineno} {ast.unparse(call.func)}"
        for module in modules()
        for call in run_at_import(module)
        if ast.unparse(call.func).rsplit(".", 1)[-1] in CLIENTS
    ]
    assert built == []


def test_importing_everything_light_connects_to_nothing() -> None:
    light = [name for name in [*below("shared"), *below("loopwright")] if not name.endswith("__main__")]
    probe = (
        "import sys, importlib\n"
        "def hook(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.bind', 'sqlite3.connect'):\n"
        "        raise SystemExit(f'{event} {arguments}')\n"
        "sys.addaudithook(hook)\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "[]\n", "")


# --- the same shape everywhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", services())
def test_a_service_has_the_same_few_files(service: str) -> None:
    own = set(below(f"services.{service}"))
    assert {f"services.{service}.__main__", f"services.{service}.settings"} <= own


def test_only_the_entry_points_start_services() -> None:
    starters = [module for module in modules() if any(".__main__" in name for name in imports(module))]
    assert starters == []
