"""Run an import: read files, send their rows, show progress, remember it, and print the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from loopwright.cli.common import EXIT_REFUSED, connect, err, out, print_json
from loopwright.errors import LoopwrightError
from loopwright.imports.checkpoint import Checkpoint, fingerprint
from loopwright.imports.importer import MAX_LISTED, RETRY, Importer, Report, RowOutcome
from loopwright.imports.rows import Defaults, ParsedRow

EXIT_INTERRUPTED: Final = 130
MAX_PRINTED: Final = 20
"""Refused rows that are printed as they occur."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options that all formats have."""

    context: typer.Context
    defaults: Defaults
    feedback_url: str | None
    as_json: bool
    dry_run: bool
    refused: Path | None


@dataclass(frozen=True, slots=True)
class Source:
    """A file and its reader."""

    name: str
    stream: BinaryIO
    read: Callable[[BinaryIO], Iterator[ParsedRow]]


def run(sources: Sequence[Source], options: Options, *identity: object) -> None:
    """Import files, print the report, and end the command with its exit status."""
    checkpoint = Checkpoint(_checkpoint_path(sources, options, identity))
    report = checkpoint.load()
    skipped = report.rows
    if skipped and not options.as_json:
        err.print(f"continuing after {skipped} rows that were sent before")
    with ExitStack() as stack:
        loop = stack.enter_context(
            connect(options.context, options.as_json, feedback_url=options.feedback_url, retry=RETRY)
        )
        refused = stack.enter_context(_refused_file(options.refused, append=skipped > 0))
        on_row = _RowPrinter(refused, quiet=options.as_json)
        importer = Importer(loop, report, options.dry_run, on_row)
        stack.enter_context(_explain_how_to_continue(options))
        try:
            _send_all(importer, sources, checkpoint, skipped)
        except KeyboardInterrupt:
            err.print(f"\ninterrupted after {report.rows} rows; the same command continues there")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    checkpoint.remove()
    print_json(_as_json(report)) if options.as_json else out.print(_summary(report))
    if report.refused:
        raise typer.Exit(EXIT_REFUSED)


def _send_all(importer: Importer, sources: Sequence[Source], checkpoint: Checkpoint, skipped: int) -> None:
    for source in sources:
        with _progress_bar(source) as advance:
            rows = source.read(source.stream)
            skipped -= sum(1 for _ in islice(rows, skipped))
            for _ in importer.send(rows, source.name if len(sources) > 1 else ""):
                checkpoint.save(importer.report)
                advance()


@contextmanager
def _explain_how_to_continue(options: Options) -> Iterator[None]:
    try:
        yield
    except LoopwrightError:
        if not options.as_json:
            err.print("The import stopped. The same command continues where it stopped.")
        raise


class _RowPrinter:
    """Prints rows that need attention, and writes refused rows to a file."""

    def __init__(self, refused: IO[str] | None, *, quiet: bool) -> None:
        self._refused, self._quiet, self._printed = refused, quiet, 0

    def __call__(self, outcome: RowOutcome) -> None:
        if outcome.status == "refused" and self._refused is not None:
            entry = {"line": outcome.row.number, "reason": outcome.reason, "row": outcome.row.source}
            self._refused.write(json.dumps(entry) + "\n")
        message, colour = (outcome.reason, "red") if outcome.reason else (outcome.hint, "yellow")
        if message is None or self._quiet or self._printed > MAX_PRINTED:
            return
        self._printed += 1
        if self._printed > MAX_PRINTED:
            err.print("further rows are only counted here; --refused FILE and --json list them")
        else:
            err.print(f"[{colour}]row {outcome.row.number}:[/] {escape(message)}")


def _refused_file(path: Path | None, *, append: bool) -> Any:
    if path is None:
        return nullcontext()
    try:
        return path.open("a" if append else "w", encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"cannot write {path}: {error.strerror}", param_hint="--refused") from None


@contextmanager
def _progress_bar(source: Source) -> Iterator[Callable[[], None]]:
    """Show how much of a file was read, on a terminal only. Yield what updates it."""
    size = None
    if source.stream.seekable():
        size = source.stream.seek(0, 2)
        source.stream.seek(0)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(f"importing {escape(Path(source.name).name)}", total=size)
        yield lambda: progress.update(task, completed=source.stream.tell() if size is not None else 0)


def _checkpoint_path(
    sources: Sequence[Source], options: Options, identity: tuple[object, ...]
) -> Path | None:
    if options.dry_run:
        return None
    found = fingerprint(
        (source.stream for source in sources), identity, options.defaults, options.feedback_url or ""
    )
    return None if found is None else Path(typer.get_app_dir("loopwright")) / "imports" / f"{found}.json"


def _summary(report: Report) -> str:
    parts = [f"{report.rows} rows", f"{report.accepted} accepted", f"{report.duplicate} duplicate"]
    parts += [f"{report.valid} valid (dry run: nothing was written)"] if report.valid else []
    parts += [f"{report.ignored} without feedback"] if report.ignored else []
    parts += [f"{report.vague} too vague to train on"] if report.vague else []
    return ", ".join([*parts, f"{report.refused} refused"])


def _as_json(report: Report) -> dict[str, object]:
    counts = asdict(report)
    refusals = [
        {"line": each["number"], "reason": each["reason"]} | ({"file": each["file"]} if each["file"] else {})
        for each in counts.pop("refusals")
    ]
    omitted = {"refusals_omitted": report.refused - MAX_LISTED} if report.refused > MAX_LISTED else {}
    return counts | {"refusals": refusals} | omitted
