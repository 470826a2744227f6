"""Read the source for the architecture tests: imports, import cycles, impure calls, calls made at import."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "services": ROOT,
    "shared": ROOT,
    "deploy": ROOT,
    "examples": ROOT,
    "loopwright": ROOT / "sdk" / "src",
}


@cache
def modules() -> dict[str, Path]:
    """Return the path of every module of ours by its dotted name."""
    found: dict[str, Path] = {}
    for package, base in PACKAGES.items():
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(), str(modules()[module]))


def below(package: str) -> list[str]:
    """Return the modules of a package, including itself."""
    return [name for name in modules() if name == package or name.startswith(f"{package}.")]


def services() -> list[str]:
    return sorted({name.split(".")[1] for name in below("services") if "." in name})


@cache
def imports(module: str) -> frozenset[str]:
    """Return everything a module imports, anywhere in it, except under TYPE_CHECKING.

    `from a import b` counts as `a.b` if that is a module of ours, else as `a`.
    """
    return frozenset(_imported(module, _seen_at_run_time(tree(module))))


def _imported(module: str, nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            found.update(f"{base}.{a.name}" if f"{base}.{a.name}" in modules() else base for a in node.names)
    return found


def reached(start: list[str]) -> dict[str, str]:
    """Return every module imported directly or indirectly from `start`, with the module that imports it first."""
    importer = dict.fromkeys(start, "")
    queue = list(start)
    while queue:
        module = queue.pop(0)
        for target in sorted(imports(module) if module in modules() else ()):
            for name in (*_parents(target), target):
                if name not in importer:
                    importer[name] = module
                    queue.append(name)
    return importer


def import_graph() -> dict[str, set[str]]:
    """Return the imports among our modules, also under TYPE_CHECKING: those would hide a cycle."""
    return {
        module: {
            name for name in _imported(module, ast.walk(tree(module))) if name in modules() and name != module
        }
        for module in modules()
    }


def import_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or indirectly, each sorted.

    A group is a strongly connected component: all modules that are reachable from each other.
    """
    reachable = {module: _reachable(graph, module) for module in graph}
    groups = {
        tuple(sorted(other for other in reachable[module] if module in reachable.get(other, set())))
        for module in graph
        if module in reachable[module]
    }
    return sorted(list(group) for group in groups)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    queue = list(graph[start])
    while queue:
        module = queue.pop()
        if module not in seen:
            seen.add(module)
            queue += graph.get(module, set())
    return seen


IMPURE_MODULES = frozenset(
    "asyncio confluent_kafka fsspec glob http httpx io logging os random redis requests secrets shutil signal socket "
    "sqlite3 structlog subprocess tempfile threading time urllib.request uuid uuid6".split()
)
IMPURE_CALLS = frozenset(
    "open now utcnow today read_text write_text read_bytes write_bytes mkdir unlink exists iterdir glob rglob stat "
    "urandom uuid4 uuid7 uuid1 token_hex token_urlsafe getenv print input".split()
)


def impurities(module: str, parsed: ast.Module | None = None) -> list[str]:
    """Return the places where a module does I/O, reads a clock or draws a random number."""
    found = []
    for node in ast.walk(parsed or tree(module)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, f"imports {a.name}") for a in node.names if a.name in IMPURE_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in IMPURE_MODULES:
            found.append((node.lineno, f"imports {node.module}"))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.rsplit(".", 1)[-1] in IMPURE_CALLS:
                found.append((node.lineno, f"calls {name}"))
    return [f"{module}:{line} {what}" for line, what in sorted(found)]


def run_at_import(module: str) -> Iterator[ast.Call]:
    """Yield the calls made by importing the module: in module and class bodies, decorators and defaults."""
    yield from _calls_now(tree(module).body)


def _calls_now(body: list[ast.stmt]) -> Iterator[ast.Call]:
    for statement in body:
        if isinstance(statement, ast.If) and _is_main_guard(statement.test):
            continue
        yield from _calls_in(statement)


def _calls_in(node: ast.AST) -> Iterator[ast.Call]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        defaults = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
        for part in [*getattr(node, "decorator_list", []), *defaults]:
            yield from _calls_in(part)
        return
    if isinstance(node, ast.Call):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _calls_in(child)


def _seen_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _seen_at_run_time(child)


def _is_main_guard(test: ast.expr) -> bool:
    return ast.unparse(test) == "__name__ == '__main__'"


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    package = parts if modules()[module].name == "__init__.py" else parts[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
