"""`make test-clients`: try clients of OpenAI's and Langfuse's APIs against inference and feedback, over HTTP.

LangChain, litellm, Langfuse, the Vercel AI SDK and `openai` for Node are installed from lock files into environments
of their own, below `.loopwright/clients`. Inference and feedback run in this process, on the in-memory engine and log.
Each script in this folder exits with 0 if every call of its client does what it should.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.feedback_app import served_feedback
from tests.inference_app import App, served, weather_answer, weather_calls

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".loopwright" / "clients"
SDK = HERE.parents[1] / "sdk" / "src"
"""The SDK for Python, whose callbacks are tried with their frameworks."""
PYTHON = ENVIRONMENTS / "python" / "bin" / "python"
NODE_FOLDER = ENVIRONMENTS / "node"
INSTALL_S, SCRIPT_S = 600, 180
UNCHECKED = "====== CLIENTS NOT TRIED: {} ======"


def main() -> int:
    """Prepare the environments, run all scripts, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="make test-clients", description="Try clients against inference and feedback."
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="pass if the clients cannot be installed, and say so"
    )
    allow_missing: bool = parser.parse_args().allow_missing
    failed = []
    for prepare in (prepare_python, prepare_node):
        try:
            prepare()
        except (OSError, subprocess.SubprocessError) as error:
            print(UNCHECKED.format(f"{prepare.__name__}: {error}"), file=sys.stderr)
            if not allow_missing:
                failed.append(prepare.__name__)
            continue
        failed += [script.name for script in SCRIPTS[prepare] if not run(script)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def prepare_python() -> None:
    """Create the environment of the Python clients, unless it has been made from this lock."""
    lock = HERE / "python.txt"
    stamp = ENVIRONMENTS / "python.stamp"
    if PYTHON.exists() and is_current(stamp, lock):
        return
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}") or "uv"
    folder = str(PYTHON.parents[1])
    execute([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder])
    execute([uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(PYTHON), str(lock)])
    stamp.write_text(digest(lock))


def prepare_node() -> None:
    """Install the clients for Node, unless they have been installed from this lock."""
    lock = HERE / "package-lock.json"
    stamp = ENVIRONMENTS / "node.stamp"
    if not (NODE_FOLDER / "node_modules").exists() or not is_current(stamp, lock):
        NODE_FOLDER.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, NODE_FOLDER)
        execute(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=NODE_FOLDER)
        stamp.write_text(digest(lock))
    # Node finds packages next to the script.
    shutil.copy(HERE / "vercel_ai.mjs", NODE_FOLDER)


def execute(command: list[str], cwd: Path = HERE) -> None:
    """Run an installer. Raises `SubprocessError` or `OSError` if it fails."""
    print("  " + " ".join(command), flush=True)
    subprocess.run(command, cwd=cwd, check=True, timeout=INSTALL_S)


def digest(lock: Path) -> str:
    """Return a digest of a lock file."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def is_current(stamp: Path, lock: Path) -> bool:
    """Return whether an environment was made from this lock."""
    return stamp.exists() and stamp.read_text() == digest(lock)


def run(script: Path) -> bool:
    """Run a script against a new server, and return whether every call of its client did what it should."""
    command = (
        ["node", str(NODE_FOLDER / script.name)] if script.suffix == ".mjs" else [str(PYTHON), str(script)]
    )
    environment = os.environ | {"PYTHONPATH": str(SDK)}
    print(script.name, flush=True)
    with serve_for(script) as url:
        try:
            subprocess.run([*command, url], cwd=ENVIRONMENTS, env=environment, check=True, timeout=SCRIPT_S)
        except subprocess.SubprocessError as error:
            print(f"{script.name}: {error}", file=sys.stderr)
            return False
    return True


def serve_for(script: Path) -> AbstractContextManager[str]:
    """Serve the API that a script's client uses."""
    if script.name in FEEDBACK_CLIENTS:
        return served_feedback()
    return served(App(max_context=10_000, answer=weather_answer, calls=weather_calls))


FEEDBACK_CLIENTS = {"langfuse_scores.py", "langchain_handler.py", "litellm_logger.py"}
"""Scripts whose clients use the feedback service; the others use inference."""
SCRIPTS: dict[Callable[[], None], tuple[Path, ...]] = {
    prepare_python: (
        HERE / "langchain_chat.py",
        HERE / "langchain_handler.py",
        HERE / "litellm_chat.py",
        HERE / "litellm_logger.py",
        HERE / "langfuse_scores.py",
    ),
    prepare_node: (HERE / "vercel_ai.mjs",),
}

if __name__ == "__main__":
    sys.exit(main())
