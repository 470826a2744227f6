"""Install a service's locked packages into its image: `python packages.py LOCK [NAME ...]`.

With names, only those packages of the lock are installed. Every file is checked by hash. The exception is PyTorch if
TORCH_BACKEND selects another build than the locked one: it is pinned to the locked version, as in
`requirements/install.py`. A PyTorch from the parent image is kept.
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


def select_packages(lock: str, names: Collection[str]) -> str:
    """Return the lock's requirements with these names, including hashes.

    Raises:
        SystemExit: if a name is not in the lock.

    """
    selected: list[str] = []
    found: set[str] = set()
    selecting = False
    for line in lock.splitlines(keepends=True):
        if not line.startswith((" ", "\t", "#")):
            name = line.partition("==")[0]
            selecting = name in names
            found |= {name} & set(names)
        if selecting:
            selected.append(line)
    if missing := set(names) - found:
        sys.exit(f"packages: not in the lock: {', '.join(sorted(missing))}. Run `make lock`.")
    return "".join(selected)


def install(lock: str, backend: str) -> None:
    """Install the packages of a lock.

    Args:
        lock: Text of the lock file.
        backend: PyTorch build, as uv's `--torch-backend` names it; empty for the locked build.

    Raises:
        CalledProcessError: if a step fails.

    """
    if backend:
        steps = runpy.run_path(str(REQUIREMENTS / "install.py"))
        torch = steps["TORCH_PIN"].search(lock)
        lock = steps["without_torch"](lock)
        if torch is not None and importlib.util.find_spec("torch") is None:
            install_torch(torch["version"], backend)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(lock)
        file.flush()
        pip_install("--require-hashes", "--no-deps", "--requirement", file.name)


def install_torch(version: str, backend: str) -> None:
    """Install PyTorch's build for this backend with uv, which knows its index; uv itself is not kept."""
    with tempfile.TemporaryDirectory() as folder:
        pip_install("--require-hashes", "--requirement", str(REQUIREMENTS / "uv.txt"), "--target", folder)
        uv = [str(Path(folder) / "bin" / "uv"), "pip", "install", "--no-cache", "--python", sys.executable]
        options = ["--break-system-packages", "--no-deps", "--torch-backend", backend, f"torch=={version}"]
        subprocess.run([*uv, *options], check=True)


def pip_install(*arguments: str) -> None:
    """Run `pip install` with these arguments; its output goes to the build's output."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    text = (REQUIREMENTS / f"{sys.argv[1]}.txt").read_text()
    install(
        select_packages(text, sys.argv[2:]) if sys.argv[2:] else text, os.environ.get("TORCH_BACKEND", "")
    )
