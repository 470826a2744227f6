"""Installs a service's lock into its image: `python packages.py LOCK [NAME ...]`; with names, only those of the lock.

Every file is checked by hash, but for PyTorch where TORCH_BACKEND names another build than the locked one: then it is
pinned to the locked version alone, as in `requirements/install.py`. A PyTorch that an image below brought stays.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"


def only(lock: str, names: Collection[str]) -> str:
    """The requirements of a lock that have these names, hashes included. Raises `SystemExit` if one is missing."""
    kept: list[str] = []
    found: set[str] = set()
    keeping = False
    for line in lock.splitlines(keepends=True):
        if not line.startswith((" ", "\t", "#")):
            name = line.partition("==")[0]
            keeping = name in names
            found |= {name} & set(names)
        if keeping:
            kept.append(line)
    if missing := set(names) - found:
        sys.exit(f"packages: not in the lock: {', '.join(sorted(missing))}; run `make lock`.")
    return "".join(kept)


def install(lock: str, backend: str) -> None:
    """Install what the lock pins; raises `CalledProcessError` if a step fails."""
    if backend:
        steps = runpy.run_path(str(REQUIREMENTS / "install.py"))
        torch = steps["TORCH_PIN"].search(lock)
        lock = steps["without_torch"](lock)
        if torch is not None and importlib.util.find_spec("torch") is None:
            install_torch(torch["version"], backend)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(lock)
        file.flush()
        pip("--require-hashes", "--no-deps", "--requirement", file.name)


def install_torch(version: str, backend: str) -> None:
    """PyTorch's build for this backend, by uv, which knows where they are; uv itself does not stay."""
    with tempfile.TemporaryDirectory() as folder:
        pip("--require-hashes", "--requirement", str(REQUIREMENTS / "uv.txt"), "--target", folder)
        uv = [str(Path(folder) / "bin" / "uv"), "pip", "install", "--no-cache", "--python", sys.executable]
        wanted = ["--break-system-packages", "--no-deps", "--torch-backend", backend, f"torch=={version}"]
        subprocess.run([*uv, *wanted], check=True)


def pip(*arguments: str) -> None:
    """`pip install` with these arguments; its output goes to the build's."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    text = (REQUIREMENTS / f"{sys.argv[1]}.txt").read_text()
    install(only(text, sys.argv[2:]) if sys.argv[2:] else text, os.environ.get("TORCH_BACKEND", ""))
