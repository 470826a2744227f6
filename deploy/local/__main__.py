"""`python -m deploy.local setup|up|down|status`."""

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
from deploy.local.stack import LocalStack, missing_of
from deploy.local.state_file import owner_of, read_record

DOWN_SECONDS = 120

app = typer.Typer(help="Loopwright on this machine, without containers.", no_args_is_help=True)
Root = Annotated[Path, typer.Option(help="The folder that holds everything the stack writes.")]
Prepared = Annotated[
    Path | None, typer.Option(help="Where Kafka's jars and the base model are; the root if not given.")
]
DEFAULT_ROOT = Path(".loopwright")


def say(line: str) -> None:
    """A line of progress, at once."""
    print(line, flush=True)


@app.command()
def setup(root: Root = DEFAULT_ROOT) -> None:
    """Fetch Kafka and make the base model and the tests' model; skip what is done. Interrupt it at any time."""
    if not os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        ensure_jars(root / "kafka", say)
    if not os.environ.get("REDIS_URL"):
        find_redis()
    if not os.environ.get("LOOPWRIGHT_BASE_MODEL"):
        ensure_base_model(root, say)
        ensure_tiny_model(root, say)
    say("setup: done")


@app.command()
def up(
    root: Root = DEFAULT_ROOT,
    foreground: Annotated[bool, typer.Option(help="Stay; Ctrl-C stops the stack.")] = False,
    services: Annotated[str, typer.Option(help="Only these services, with commas.")] = ",".join(SERVICES),
    prepared: Prepared = None,
) -> None:
    """Start Kafka, Redis and the services, and print where they listen."""
    if foreground:
        run_here(root, services.split(","), prepared or root)
    else:
        run_apart(root, services, prepared or root)


def run_here(root: Path, services: list[str], prepared: Path) -> None:
    """Own the stack until SIGTERM or SIGINT."""
    asked = threading.Event()

    def stop(number: int, _: object) -> None:
        first = not asked.is_set()
        asked.set()
        # While starting there is something to interrupt, once; later the loop below sees the event.
        if first and not started:
            raise KeyboardInterrupt

    started = False
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    stack = LocalStack(root, [service for service in services if service], prepared=prepared, progress=say)
    try:
        with stack:
            started = True
            show_addresses(stack.urls)
            while not asked.wait(1.0):
                pass
    except KeyboardInterrupt:
        say("interrupted")
    say("stopped")


def run_apart(root: Path, services: str, prepared: Path) -> None:
    """Start an owner in the background and follow it until the stack is ready."""
    owner = owner_of(root)
    if owner is not None:
        raise StackError(f"a stack already runs in {root} (process {owner}); stop it with `make down`.")
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
            while (record := read_record(root)) is None or record["state"] != "ready":
                say_all(lines.read())
                if child.poll() is not None:
                    say_all(lines.read())
                    raise typer.Exit(1)
                time.sleep(0.2)
            say_all(lines.read())
    except KeyboardInterrupt:
        child.terminate()
        child.wait(DOWN_SECONDS)
        raise typer.Exit(130) from None
    say(f"The stack runs (process {child.pid}); logs in {log.parent}; stop it with `make down`.")


def say_all(text: str) -> None:
    """Pass on what the owner said."""
    if text:
        print(text, end="", flush=True)


@app.command()
def down(root: Root = DEFAULT_ROOT) -> None:
    """Stop the stack: services, then Redis, then Kafka."""
    owner = owner_of(root)
    if owner is None:
        say(f"no stack runs in {root}")
        return
    os.kill(owner, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    while owner_of(root) == owner:
        if time.monotonic() > deadline:
            # Its children are tethered to it.
            os.kill(owner, signal.SIGKILL)
            raise StackError(f"process {owner} did not stop within {DOWN_SECONDS} s and was killed.")
        time.sleep(0.1)
    say("stopped")


@app.command()
def status(
    root: Root = DEFAULT_ROOT,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Where everything listens and what is not ready; exit status 3 if no stack runs."""
    record = read_record(root)
    if record is None:
        print(json.dumps({"state": "down"}) if as_json else f"no stack runs in {root}")
        raise typer.Exit(3)
    missing = {name: missing_of(record[name]) for name in SERVICES if name in record}
    if as_json:
        print(json.dumps({**record, "missing": {name: what for name, what in missing.items() if what}}))
        return
    show(record, missing)


def show(record: dict[str, Any], missing: dict[str, str | None]) -> None:
    """The status as a table."""
    table = Table(title=f"stack of process {record['owner']}: {record['state']}")
    for column in ("", "address", "pid at start", ""):
        table.add_column(column)
    for name in ("kafka", "redis", *missing):
        pid = record["pids"].get(name, "")
        table.add_row(name, record[name], str(pid), missing.get(name) or ("ready" if name in missing else ""))
    Console().print(table)


def show_addresses(urls: dict[str, str]) -> None:
    """Every address, one a line."""
    for name, url in urls.items():
        say(f"  {name:<10} {url}")


def main() -> None:
    """Run a command; a `StackError` is one message, not a traceback."""
    try:
        app()
    except StackError as error:
        print(f"deploy.local: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
