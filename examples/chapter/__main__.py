"""Command line of the chapter: `python -m examples.chapter` (`make chapter`)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from deploy.local.errors import StackError
from examples.chapter.rows import ROWS
from examples.chapter.stack import ROOT, settings
from examples.chapter.steps import ChapterFailed, ChapterRun
from examples.demo.stack import running
from loopwright import LoopwrightError

SUMMARY = "summary.json"


def chapter(
    file: Annotated[
        Path,
        typer.Option("--file", exists=True, help="JSON array of rows with input, response and feedback."),
    ] = ROWS,
    keep: Annotated[bool, typer.Option(help="Leave the stack running afterwards.")] = False,
    root: Annotated[Path, typer.Option(help="Folder for the stack; deleted at the start.")] = ROOT,
) -> None:
    """Import a notebook's feedback rows, retrain the model on them and ask it again.

    Environment variables: LOOPWRIGHT_BASE_MODEL sets the base model (a Hugging Face id or a folder);
    LOOPWRIGHT_TRAINER_EPOCHS and LOOPWRIGHT_TRAINER_TOKENS_PER_STEP set epochs and the size of a step.
    """
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)

    def print_progress(line: str) -> None:
        console.print(line, style="dim", highlight=False, markup=False)

    with running(root, keep=keep, progress=print_progress, settings=settings(os.environ)) as urls:
        summary = ChapterRun(root, urls, file, console).run()
    path = root / SUMMARY
    path.write_text(summary.model_dump_json(indent=1) + "\n")
    console.print(f"\nSummary: {path}", highlight=False)
    if keep:
        console.print(
            "The stack is still running. Stop it with: python -m deploy.local down --root", str(root)
        )


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command; print expected errors as one message without a traceback."""
    try:
        typer.run(chapter)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the stack is stopped")
    except (StackError, ChapterFailed, LoopwrightError) as error:
        sys.exit(f"chapter: {error}")


if __name__ == "__main__":
    main()
