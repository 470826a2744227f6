"""`python -m examples.demo`, which is `make demo`."""

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
from examples.demo.chats import Doors
from examples.demo.loop import SETUP, Course, DemoFailed, stages
from examples.demo.stack import ROOT, SUMMARY, prepare, running
from examples.demo.summary import Summary, show
from examples.demo.terminal_ui import Screen
from examples.demo.users import cast
from examples.world import load_world
from loopwright import Loopwright, LoopwrightError

ADDRESSES = ("inference", "feedback", "console", "processor", "rollout", "trainer", "kafka", "redis")


def demo(
    keep: Annotated[
        bool, typer.Option(help="Leave everything running afterwards and print the addresses.")
    ] = False,
    shuffled: Annotated[bool, typer.Option(help="The control: corrections answer other questions.")] = False,
    root: Annotated[Path, typer.Option(help="Where the demo's stack lives; erased at the start.")] = ROOT,
) -> None:
    """A real loop: SmolLM2 is asked about an invented company, users correct it, and it learns."""
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    world = load_world()
    screen = Screen(stages(), console)
    with ExitStack() as closing:
        closing.enter_context(screen)
        with screen.stage(SETUP) as stage:
            prepare(partial(screen.detail, stage))
            stage.detail = "ready"
        with screen.stage("start") as stage:
            tell = partial(screen.detail, stage)
            urls = closing.enter_context(running(root, keep=keep, progress=tell))
            stage.detail = f"inference on {urls['inference']}"
        course = Course(_doors(urls), world, cast(world, shuffled=shuffled), screen, shuffled)
        summary = course.run()
    path = root / SUMMARY
    path.write_text(summary.model_dump_json(indent=1) + "\n")
    show(summary, course.before, course.after, console)
    console.print(f"[dim]summary[/dim]  {path}")
    if keep:
        _show_addresses(urls, console)
    raise typer.Exit(_exit_code(summary, shuffled))


def _doors(urls: dict[str, str]) -> Doors:
    loop = Loopwright(
        feedback_url=urls["feedback"], console_url=urls["console"], inference_url=urls["inference"]
    )
    return Doors(
        OpenAI(base_url=loop.openai_base_url, api_key="none needed", max_retries=0, timeout=300), loop
    )


def _exit_code(summary: Summary, shuffled: bool) -> int:
    """0 only if the loop did what it is for; the control, only if nothing passed."""
    if shuffled:
        return int(summary.verdict == "passed")
    well = summary.verdict == "passed" and summary.closed and summary.swap.failed == 0
    return int(
        not (well and summary.swap.mixed_version == 0 and summary.accuracy_after > summary.accuracy_before)
    )


def _show_addresses(urls: dict[str, str], console: Console) -> None:
    console.print("\nStill running; `make down` stops it:")
    for name in ADDRESSES:
        console.print(f"  {name:<10} {urls[name]}", highlight=False)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """One message where something is missing, no traceback; nothing is left running."""
    app = typer.Typer(add_completion=False)
    app.command()(demo)
    try:
        sys.exit(app(standalone_mode=False))
    except (KeyboardInterrupt, Abort):
        print("\ninterrupted: everything is stopped", file=sys.stderr)
        sys.exit(130)
    except ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (StackError, DemoFailed, LoopwrightError) as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
