"""Command line of the local stack: `python -m deploy.local setup|up|down|status`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deploy.local.errors import StackError
from deploy.local.kafka_jars import ensure_jars
from deploy.local.model import ensure_base_model, ensure_tiny_model
from deploy.local.redis import find_redis
from deploy.local.services import REPOSITORY, SERVICES
from deploy.local.stack import LocalStack, not_ready_reason
from deploy.local.state_file import owner_pid, read_state

STOP_SECONDS = 120

app = typer.Typer(help="Run Loopwright on this machine without containers.", no_args_is_help=True)
Root = Annotated[Path, typer.Option(help="Folder for everything that the stack writes.")]
Prepared = Annotated[
    Path | None, typer.Option(help="Folder with Kafka's jars and the base model. Default: the root.")
]
DEFAULT_ROOT = Path(".loopwright")


def print_line(line: str) -> None:
    """Print one line of progress and flush it."""
    print(line, flush=True)


@app.command()
def setup(root: Root = DEFAULT_ROOT) -> None:
    """Download Kafka and the base model, and create the tests' model.

    Skips what is already there. It can be interrupted and run again at any time.
    """
    if not os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        ensure_jars(root / "kafka", print_line)
    if not os.environ.get("REDIS_URL"):
        find_redis()
    if not os.environ.get("LOOPWRIGHT_BASE_MODEL"):
        ensure_base_model(root, print_line)
        ensure_tiny_model(root, print_line)
    print_line("setup: complete")


@app.command()
def up(
    root: Root = DEFAULT_ROOT,
    foreground: Annotated[bool, typer.Option(help="Stay in the foreground; Ctrl-C stops the stack.")] = False,
    services: Annotated[str, typer.Option(help="Services to start, separated by commas.")] = ",".join(
        SERVICES
    ),
    prepared: Prepared = None,
) -> None:
    """Start Kafka, Redis and the services, and print their addresses."""
    if foreground:
        run_in_foreground(root, services.split(","), prepared or root)
    else:
        start_in_background(root, services, prepared or root)


def run_in_foreground(root: Path, services: list[str], prepared: Path) -> None:
    """Run the stack until SIGTERM or SIGINT."""
    stop_requested = threading.Event()

    def stop(number: int, _: object) -> None:
        first = not stop_requested.is_set()
        stop_requested.set()
        # A start is interrupted once; afterwards the loop below sees the event.
        if first and not started:
            raise KeyboardInterrupt

    started = False
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    stack = LocalStack(
        root, [service for service in services if service], prepared=prepared, progress=print_line
    )
    try:
        with stack:
            started = True
            print_addresses(stack.urls)
            while not stop_requested.wait(1.0):
                pass
    except KeyboardInterrupt:
        print_line("interrupted")
    print_line("stopped")


def start_in_background(root: Path, services: str, prepared: Path) -> None:
    """Start a background process that runs the stack; print its progress until the stack is ready."""
    owner = owner_pid(root)
    if owner is not None:
        raise StackError(f"a stack is already running in {root} (process {owner}). Stop it with `make down`.")
    log = root.resolve() / "run" / "logs" / "stack.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        child = subprocess.Popen(
            [
                sys.executable, "-m", "deploy.local", "up", "--foreground",
                "--root", str(root.resolve()), "--services", services, "--prepared", str(prepared.resolve()),
            ],
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        with log.open() as lines:
            while (state := read_state(root)) is None or state["state"] != "ready":
                print_output(lines.read())
                if child.poll() is not None:
                    print_output(lines.read())
                    raise typer.Exit(1)
                time.sleep(0.2)
            print_output(lines.read())
    except KeyboardInterrupt:
        child.terminate()
        child.wait(STOP_SECONDS)
        raise typer.Exit(130) from None
    print_line(f"The stack is running (process {child.pid}). Logs: {log.parent}. Stop it with `make down`.")


def print_output(text: str) -> None:
    """Print output of the background process."""
    if text:
        print(text, end="", flush=True)


@app.command()
def down(root: Root = DEFAULT_ROOT) -> None:
    """Stop the stack: services, then Redis, then Kafka."""
    owner = owner_pid(root)
    if owner is None:
        print_line(f"no stack is running in {root}")
        return
    os.kill(owner, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while owner_pid(root) == owner:
        if time.monotonic() > deadline:
            # Its children die with it.
            os.kill(owner, signal.SIGKILL)
            raise StackError(f"process {owner} did not stop within {STOP_SECONDS} s and was killed.")
        time.sleep(0.1)
    print_line("stopped")


@app.command()
def status(
    root: Root = DEFAULT_ROOT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print addresses and readiness. Exits with 3 if no stack is running."""
    state = read_state(root)
    if state is None:
        print(json.dumps({"state": "down"}) if as_json else f"no stack is running in {root}")
        raise typer.Exit(3)
    reasons = {name: not_ready_reason(state[name]) for name in SERVICES if name in state}
    if as_json:
        print(json.dumps({**state, "missing": {name: reason for name, reason in reasons.items() if reason}}))
        return
    print_status(state, reasons)


def print_status(state: dict[str, Any], reasons: dict[str, str | None]) -> None:
    """Print the status as a table."""
    table = Table(title=f"Stack of process {state['owner']}: {state['state']}")
    for column in ("Program", "Address", "PID at start", "Status"):
        table.add_column(column)
    for name in ("kafka", "redis", *reasons):
        pid = state["pids"].get(name, "")
        table.add_row(name, state[name], str(pid), reasons.get(name) or ("ready" if name in reasons else ""))
    Console().print(table)


def print_addresses(urls: dict[str, str]) -> None:
    """Print all addresses, one per line."""
    for name, url in urls.items():
        print_line(f"  {name:<10} {url}")


def main() -> None:
    """Run the command line; print a `StackError` as a message without a traceback."""
    try:
        app()
    except StackError as error:
        print(f"deploy.local: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
