"""Command line of the demo: `python -m examples.demo` (`make demo`)."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from click.exceptions import Abort, ClickException
from openai import OpenAI
from rich.console import Console

from deploy.local.errors import StackError
from examples.demo.chats import Clients
from examples.demo.loop import SETUP, DemoFailed, DemoRun, demo_stages
from examples.demo.stack import ROOT, SUMMARY, prepare, running
from examples.demo.summary import Summary, print_summary
from examples.demo.terminal_ui import Screen
from examples.demo.users import simulate_visits
from examples.world import load_world
from loopwright import Loopwright, LoopwrightError

ADDRESSES = ("inference", "feedback", "console", "processor", "rollout", "trainer", "kafka", "redis")


def demo(
    keep: Annotated[
        bool, typer.Option(help="Leave the stack running afterwards and print its addresses.")
    ] = False,
    shuffled: Annotated[
        bool, typer.Option(help="Control experiment: each correction answers another question.")
    ] = False,
    root: Annotated[Path, typer.Option(help="Folder for the demo's stack; deleted at the start.")] = ROOT,
) -> None:
    """Run one complete loop: users ask SmolLM2 about an invented company and correct it, and it learns."""
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    world = load_world()
    screen = Screen(demo_stages(), console)
    with ExitStack() as closing:
        closing.enter_context(screen)
        with screen.stage(SETUP) as stage:
            prepare(partial(screen.detail, stage))
            stage.detail = "ready"
        with screen.stage("start") as stage:
            progress = partial(screen.detail, stage)
            urls = closing.enter_context(running(root, keep=keep, progress=progress))
            stage.detail = f"inference on {urls['inference']}"
        visits = simulate_visits(world, shuffled=shuffled)
        run = DemoRun(_clients(urls), world, visits, screen, shuffled)
        summary = run.run()
    path = root / SUMMARY
    path.write_text(summary.model_dump_json(indent=1) + "\n")
    print_summary(summary, run.before, run.after, console)
    console.print(f"[dim]Summary file[/dim]  {path}")
    if keep:
        _show_addresses(urls, console)
    raise typer.Exit(_exit_code(summary, shuffled))


def _clients(urls: dict[str, str]) -> Clients:
    loop = Loopwright(
        feedback_url=urls["feedback"], console_url=urls["console"], inference_url=urls["inference"]
    )
    return Clients(
        OpenAI(base_url=loop.openai_base_url, api_key="not needed", max_retries=0, timeout=300), loop
    )


def _exit_code(summary: Summary, shuffled: bool) -> int:
    """Return 0 if the loop closed and the model improved; for the control, if no version passed."""
    if shuffled:
        return int(summary.verdict == "passed")
    passed = summary.verdict == "passed" and summary.closed and summary.swap.failed == 0
    return int(
        not (passed and summary.swap.mixed_version == 0 and summary.accuracy_after > summary.accuracy_before)
    )


def _show_addresses(urls: dict[str, str], console: Console) -> None:
    console.print("\nThe stack is still running. Stop it with `make down`. Addresses:")
    for name in ADDRESSES:
        console.print(f"  {name:<10} {urls[name]}", highlight=False)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command; print expected errors as one message without a traceback."""
    app = typer.Typer(add_completion=False)
    app.command()(demo)
    try:
        sys.exit(app(standalone_mode=False))
    except (KeyboardInterrupt, Abort):
        print("\ninterrupted; the stack is stopped", file=sys.stderr)
        sys.exit(130)
    except ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (StackError, DemoFailed, LoopwrightError) as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
