"""Each topic has exactly its declared writers: in the table, in created records, and in opened publishers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import shared.topics
from shared.topics import TOPICS, Topic
from tests.unit.source_tree import below, services, tree

# Design section 4: the topics and the services that write them, apart from each one's changelog.
WRITERS = {
    "chat.responses": {"inference", "feedback", "sdk"},
    "feedback.events": {"feedback", "sdk"},
    "erasure.requests": {"feedback"},
    "erasure.reports": {"processor", "trainer"},
    "processor.changelog": {"processor"},
    "rollout.changelog": {"rollout"},
    "training.batches": {"processor"},
    "feedback.outcomes": {"processor"},
    "feedback.tallies": {"processor"},
    "response.samples": {"processor"},
    "dead.letters": {"inference", "feedback", "processor", "trainer", "rollout", "console"},
    "model.versions": {"trainer"},
    "model.rollout": {"rollout"},
    "model.canary": {"rollout"},
    "model.serving": {"inference"},
    "operator.commands": {"console", "rollout", "trainer"},
    "operator.results": {"inference", "feedback", "processor", "trainer", "rollout"},
}
OPENED_BY_NAME = {"KafkaPublisher", "KafkaTransactionalPublisher"}
CONSTANTS = {name: topic for name, topic in vars(shared.topics).items() if isinstance(topic, Topic)}


def test_each_topic_has_the_writers_of_the_design() -> None:
    assert {name: set(topic.writers) for name, topic in TOPICS.items()} == WRITERS


@dataclass(frozen=True)
class Maker:
    """A function that creates records, and which of its arguments is the topic."""

    place: int
    keyword: str = "topic"


MAKERS = {
    "cloudevent": Maker(0),
    "CloudEventFactory": Maker(0),
    "Output": Maker(0),
    "Output.to_same_partition_as": Maker(1),
}
REPLAYED = {"services.inference.spool": "reads back records from disk"}
"""Modules that recreate existing records; there too, the publisher refuses foreign topics."""


def written_by(package: str) -> list[tuple[str, str]]:
    """Return (location, topic) for each record that a package creates; the topic is "?" if it cannot be determined.

    Records are created by `cloudevent(TOPIC, ...)`, `Output(TOPIC.name, ...)`, or a function of the same module that
    passes its topic argument to these; then its callers count. The topic is named by its constant.
    """
    return [
        found
        for module in below(package)
        if module not in REPLAYED
        for found in _written(module, tree(module))
    ]


def _written(module: str, source: ast.Module) -> list[tuple[str, str]]:
    makers = dict(MAKERS)
    while True:
        found, handing_on = _calls_of(makers, source)
        if handing_on.keys() <= makers.keys():
            return [(f"{module}:{line}", topic) for line, topic in found]
        makers |= handing_on


def _calls_of(makers: dict[str, Maker], source: ast.Module) -> tuple[list[tuple[int, str]], dict[str, Maker]]:
    """Return records created by calls of `makers`, and functions that only pass their topic argument to them."""
    found: list[tuple[int, str]] = []
    handing_on: dict[str, Maker] = {}
    for function, call in _calls_with_function(source):
        maker = makers.get(ast.unparse(call.func).removeprefix("self."))
        if maker is None:
            continue
        argument = next((k.value for k in call.keywords if k.arg == maker.keyword), None)
        if argument is None and len(call.args) > maker.place:
            argument = call.args[maker.place]
        names = [] if function is None else [a.arg for a in function.args.args if a.arg != "self"]
        bare = ast.unparse(argument).removesuffix(".name") if argument is not None else ""
        if function is not None and bare in names:
            handing_on[function.name] = Maker(names.index(bare), bare)
        else:
            found.append((call.lineno, topic_named(argument)))
    return found, handing_on


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _calls_with_function(
    node: ast.AST, function: Function | None = None
) -> Iterator[tuple[Function | None, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield function, child
        yield from _calls_with_function(child, child if isinstance(child, Function) else function)


def topic_named(argument: ast.expr | None) -> str:
    """Return the topic that an expression names by constant or text, else "?"."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    if argument is not None:
        constant = re.fullmatch(r"(?:topics\.)?([A-Z_]+)(?:\.name)?", ast.unparse(argument))
        if constant and constant[1] in CONSTANTS:
            return CONSTANTS[constant[1]].name
    return "?"


def engine_outputs(package: str) -> list[tuple[str, str]]:
    """Return (location, topic) for each topic that a service lets the stream engine write: `outputs={...}`.

    A model's `outputs` in TRL is something else and is ignored.
    """
    return [
        (f"{module}:{keyword.value.lineno}", topic_named(node))
        for module in below(package)
        for call in ast.walk(tree(module))
        if isinstance(call, ast.Call) and ast.unparse(call.func) != "add_fused_lm_head"
        for keyword in call.keywords
        if keyword.arg == "outputs"
        for collection in ast.walk(keyword.value)
        if isinstance(collection, ast.Set | ast.Tuple | ast.List)
        for node in collection.elts
    ]


@pytest.mark.parametrize("service", services())
def test_service_makes_records_only_for_its_own_topics(service: str) -> None:
    package = f"services.{service}"
    foreign = [
        f"{place} writes {topic}"
        for place, topic in [*written_by(package), *engine_outputs(package)]
        if topic not in TOPICS or service not in TOPICS[topic].writers
    ]
    assert foreign == []


def test_publishers_are_opened_under_the_services_name() -> None:
    """Publishers check topics by the name they were opened with, so it must be the service's."""
    for service in services():
        for module in below(f"services.{service}"):
            for node in ast.walk(tree(module)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in OPENED_BY_NAME:
                    given = node.args[1] if len(node.args) > 1 else None
                    assert given is not None, f"{module}:{node.lineno} gives no name"
                    assert _value(module, given) == service, f"{module}:{node.lineno}"


def _value(module: str, expression: ast.expr) -> object:
    """Return the value of a literal, or of a name that a module of the service sets to one."""
    if isinstance(expression, ast.Constant):
        return expression.value
    service = ".".join(module.split(".")[:2])
    values = {
        statement.value.value
        for name in below(service)
        for statement in tree(name).body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        if isinstance(statement.value, ast.Constant)
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
        if ast.unparse(target) == ast.unparse(expression).rsplit(".", 1)[-1]
    }
    return values.pop() if len(values) == 1 else None


def test_writers_are_found_through_passed_topics() -> None:
    """Negative control: each way of writing a foreign topic is found, and an unreadable topic is reported."""
    source = """
cloudevent(MODEL_ROLLOUT, k, r)
Output("chat.responses", k, v)
Output.to_same_partition_as(s, unknown, k, v)
def make(topic, record):
    return cloudevent(topic, "k", record)
class Edge:
    def out(self, key, topic):
        return make(topic, key)
    def both(self):
        return [self.out("k", FEEDBACK_EVENTS), make(record=1, topic=TRAINING_BATCHES)]
"""
    assert sorted(topic for _, topic in _written("m", ast.parse(source))) == [
        "?",
        "chat.responses",
        "feedback.events",
        "model.rollout",
        "training.batches",
    ]
