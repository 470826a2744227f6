"""`python -m examples.chapter`, which is `make chapter`."""

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
from examples.chapter.steps import Chapter, ChapterFailed
from examples.demo.stack import running
from loopwright import LoopwrightError

SUMMARY = "summary.json"


def chapter(
    file: Annotated[
        Path, typer.Option("--file", exists=True, help="A JSON array of input, response, feedback.")
    ] = ROWS,
    keep: Annotated[bool, typer.Option(help="Leave everything running afterwards.")] = False,
    root: Annotated[Path, typer.Option(help="Where its stack lives; erased at the start.")] = ROOT,
) -> None:
    """A notebook's feedback rows: import, dataset, retrained model, answers.

    LOOPWRIGHT_BASE_MODEL names another model (a Hugging Face id or a folder), LOOPWRIGHT_TRAINER_EPOCHS and
    LOOPWRIGHT_TRAINER_BATCH_SIZE other epochs and batches.
    """
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)

    def tell(line: str) -> None:
        console.print(line, style="dim", highlight=False, markup=False)

    with running(root, keep=keep, progress=tell, settings=settings(os.environ)) as urls:
        summary = Chapter(root, urls, file, console).run()
    path = root / SUMMARY
    path.write_text(summary.model_dump_json(indent=1) + "\n")
    console.print(f"\nsummary  {path}", highlight=False)
    if keep:
        console.print("still running; stop it with: python -m deploy.local down --root", str(root))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """One message where something is missing, no traceback; nothing is left running."""
    try:
        typer.run(chapter)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: everything is stopped")
    except (StackError, ChapterFailed, LoopwrightError) as error:
        sys.exit(f"chapter: {error}")


if __name__ == "__main__":
    main()
