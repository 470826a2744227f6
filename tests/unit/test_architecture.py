"""Enforce the architecture: which module may import which, pure cores, and the same parts in every service."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from typing import Any

import pytest

from tests.unit.source_tree import (
    PACKAGES,
    ROOT,
    below,
    import_cycles,
    import_graph,
    imports,
    impurities,
    modules,
    reached,
    run_at_import,
    services,
    tree,
)

HEAVY = {"torch", "transformers", "peft", "trl", "datasets"}
SERVERS = {"fastapi", "starlette", "uvicorn", "faust", "mode"}
CLIENTS = {
    "AdminClient", "App", "AsyncClient", "AsyncOpenAI", "Client", "Consumer", "ConnectionPool", "FakeRedis", "OpenAI",
    "Producer", "Redis", "from_url", "from_pretrained", "connect", "create_connection", "socket", "urlopen", "Popen",
    "Thread", "load",
}  # fmt: skip
"""Calls that open a connection, start a thread or process, or read the environment."""


def top(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


# --- imports between packages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", services())
def test_service_never_imports_another_service(service: str) -> None:
    others = {
        name: by for name, by in reached(below(f"services.{service}")).items() if top(name) == "services"
    }
    foreign = {name: by for name, by in others.items() if name.split(".")[1:2] not in ([], [service])}
    assert foreign == {}


def test_shared_imports_no_package_built_on_it() -> None:
    assert [
        name for name in reached(below("shared")) if top(name) in {"services", "deploy", "examples", "tests"}
    ] == []


@pytest.mark.parametrize("package", ["shared", "loopwright"])
def test_package_imports_no_model_library(package: str) -> None:
    assert {name: by for name, by in reached(below(package)).items() if top(name) in HEAVY} == {}


def test_sdk_imports_no_other_package_of_ours() -> None:
    names = {top(name) for name in reached(below("loopwright"))}
    assert names.isdisjoint({"services", "shared", "deploy", "examples"} | SERVERS)


def test_services_import_no_deployment_or_test_code() -> None:
    assert [name for name in reached(below("services")) if top(name) in {"deploy", "examples", "tests"}] == []


OPTIONAL_EXTRAS = {"trainer": "gpu"}
"""Extras whose libraries a service uses where they are installed."""


def declared(extra: str) -> set[str]:
    """Return the distributions that an extra names, with those that every service has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"].get(extra, [])]
    return {normal(re.split(r"[\s<>=!~;\[]", requirement)[0]) for requirement in wanted}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@pytest.mark.parametrize("service", services())
def test_service_imports_only_what_its_extra_declares(service: str) -> None:
    distributions: dict[str, Any] = dict(packages_distributions())
    undeclared = {}
    for name, by in reached(below(f"services.{service}")).items():
        if top(name) in {*PACKAGES, "tests"} or top(name) in sys.stdlib_module_names or by not in modules():
            continue
        providers = {normal(d) for d in distributions.get(top(name), [f"{top(name)} (not installed)"])}
        if not providers & (declared(service) | declared(OPTIONAL_EXTRAS.get(service, service))):
            undeclared[name] = by
    assert undeclared == {}


# --- nothing happens at import ----------------------------------------------------------------------------------


def test_no_module_builds_a_client_at_import() -> None:
    built = [
        f"{module}:{call.lineno} {ast.unparse(call.func)}"
        for module in modules()
        for call in run_at_import(module)
        if ast.unparse(call.func).rsplit(".", 1)[-1] in CLIENTS
    ]
    assert built == []


def test_importing_shared_and_sdk_connects_to_nothing() -> None:
    left_out = ("__main__", "integrations.langchain", "integrations.litellm")  # their frameworks are not here
    light = [name for name in [*below("shared"), *below("loopwright")] if not name.endswith(left_out)]
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


# --- one place builds Kafka clients -------------------------------------------------------------------------------

KAFKA_BUILDERS = {"shared.adapters.kafka_clients", "loopwright.kafka"}
"""`loopwright.kafka` runs in apps; the SDK shares no code with the services."""
KAFKA_CLIENTS = {
    "Producer", "Consumer", "ShareConsumer", "SerializingProducer", "DeserializingConsumer", "AdminClient",
    "AIOProducer", "AIOConsumer", "AIOKafkaProducer", "AIOKafkaConsumer", "KafkaProducer", "KafkaConsumer",
}  # fmt: skip


def kafka_clients_used(node: ast.AST) -> list[str]:
    """Return where a module uses a class of Kafka clients, other than in annotations."""
    found = []
    if isinstance(node, ast.ImportFrom | ast.Import):
        found = [alias.name for alias in node.names if alias.asname and alias.name in KAFKA_CLIENTS]
    elif isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        found = [name] if name in KAFKA_CLIENTS else []
    places = [f"{getattr(node, 'lineno', 0)} {name}" for name in found]
    for part, value in ast.iter_fields(node):
        if part not in {"annotation", "returns"}:
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST):
                    places += kafka_clients_used(each)
    return places


def test_one_module_builds_every_kafka_client() -> None:
    used = {name: kafka_clients_used(tree(name)) for name in modules() if top(name) != "examples"}
    assert {name for name, places in used.items() if places} == KAFKA_BUILDERS, used


def test_kafka_clients_are_found_however_they_are_built() -> None:
    """Negative control: each way to construct a client is found, and an annotation is not taken for one."""
    source = """
from confluent_kafka import Consumer as Reader, Producer
import confluent_kafka
def read(consumer: Consumer) -> Consumer:
    seen: Consumer = consumer
    partial(Producer, {})
    confluent_kafka.admin.AdminClient({})
class Own(Consumer): ...
"""
    assert kafka_clients_used(ast.parse(source)) == [
        "2 Consumer",
        "6 Producer",
        "7 AdminClient",
        "8 Consumer",
    ]


# --- no cycles, pure cores ----------------------------------------------------------------------------------------


def test_no_import_cycle_exists_between_modules() -> None:
    assert import_cycles(import_graph()) == []


def test_import_cycles_are_found_across_any_number_of_modules() -> None:
    """Negative control: a cycle of three is found, and a module that only leads into it is not part of it."""
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert import_cycles(graph) == [["a", "b", "c"]]


CORES = sorted(name for name in modules() if name.split(".")[0] == "services" and ".core" in name)


@pytest.mark.parametrize("module", CORES)
def test_core_has_no_io_clock_or_randomness(module: str) -> None:
    assert impurities(module) == []


def test_core_reaches_no_adapter_and_no_client() -> None:
    clients = {"confluent_kafka", "redis", "fsspec", "sqlite3", "socket", "subprocess", "httpx", "requests"}
    found = {
        name: by
        for name, by in reached(list(CORES)).items()
        if top(name) in clients or name.startswith("shared.adapters")
    }
    assert found == {}


def test_impurities_are_found_however_they_are_reached() -> None:
    """Negative control: each way to read a clock, a file or a random number is found."""
    source = """
import time
from random import random
from datetime import datetime
def step(path):
    open("x")
    path.read_text()
    return time.time(), random(), datetime.now(), uuid4()
"""
    assert impurities("synthetic", ast.parse(source)) == [
        "synthetic:2 imports time",
        "synthetic:3 imports random",
        "synthetic:6 calls open",
        "synthetic:7 calls path.read_text",
        "synthetic:8 calls datetime.now",
        "synthetic:8 calls uuid4",
    ]


# --- torch stays in the process of a run --------------------------------------------------------------------------


def test_trainer_service_never_imports_torch_or_transformers() -> None:
    probe = (
        "import sys, services.trainer.__main__, services.trainer.service\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "[]\n", "")


# --- the same parts in every service ------------------------------------------------------------------------------


@pytest.mark.parametrize("service", services())
def test_service_has_the_standard_parts(service: str) -> None:
    own = set(below(f"services.{service}"))
    parts = {f"services.{service}.{part}" for part in ("__main__", "settings", "service", "core")}
    assert parts <= own


@pytest.mark.parametrize("service", services())
def test_service_declares_routes_only_in_its_api(service: str) -> None:
    api = f"services.{service}.api"
    outside = [
        module
        for module in below(f"services.{service}")
        if _declares_routes(module) and module != api and not module.startswith(f"{api}.")
    ]
    assert outside == []


def _declares_routes(module: str) -> bool:
    verbs = {"get", "post", "put", "delete", "patch", "api_route"}
    return any(
        isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr in verbs
        and ast.unparse(decorator.func.value) in {"app", "router", "api"}
        for node in ast.walk(ast.parse(modules()[module].read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for decorator in node.decorator_list
    )


def test_no_module_imports_an_entry_point() -> None:
    starters = [module for module in modules() if any(".__main__" in name for name in imports(module))]
    assert starters == []
