"""The source as the architecture tests read it: which module imports what, and what runs while it is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
    """Every module of ours by its dotted name."""
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
    """The modules of a package, itself among them."""
    return [name for name in modules() if name == package or name.startswith(f"{package}.")]


def services() -> list[str]:
    return sorted({name.split(".")[1] for name in below("services") if "." in name})


@cache
def imports(module: str) -> frozenset[str]:
    """All that a module imports, anywhere in it, but not what only the type checker sees.

    `from a import b` counts as `a.b` where that is a module of ours, else as `a`.
    """
    found: set[str] = set()
    for node in _seen_at_run_time(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            found.update(f"{base}.{a.name}" if f"{base}.{a.name}" in modules() else base for a in node.names)
    return frozenset(found)


def reached(start: list[str]) -> dict[str, str]:
    """Every module that is imported by way of `start`: name -> who of ours imports it first."""
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


def run_at_import(module: str) -> Iterator[ast.Call]:
    """The calls that are made by importing the module: bodies of modules and classes, decorators, defaults."""
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
