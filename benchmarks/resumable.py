"""The frame of benchmarks that take hours: arms run one after the other, and each keeps its result in a folder.

An interrupted benchmark resumes: an arm with a result does not run again. Results of other data, of another base or of
the other form (full or quick) are kept apart; those of other code are marked.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import services.trainer
from benchmarks.machine import machine
from benchmarks.trainer_run import PREPARED, ProcessFailed, StageCallback
from deploy.local.model import REPLAY_FOLDER
from services.trainer.files import write_whole
from shared.adapters.base_model import PinnedBase
from shared.events import canonical_json, sha256

RESULT: Final = "result.json"
FAILED, INTERRUPTED = 1, 130
"""Exit codes."""
STAGES: Final = {"training": (0.15, 0.75), "gate": (0.75, 0.9), "measuring": (0.9, 1.0)}
"""Shares of an arm's work before and after a stage."""
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Use the tiny model and little data, to check that everything runs.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 1 if a bar is not reached.")]
BaseOption = Annotated[str, typer.Option(help="Folder or Hugging Face id of another base model.")]
FolderOption = Annotated[Path, typer.Option(help="Folder for the runs and results.")]


class Arm(Protocol):
    """One arm of a benchmark with one seed."""

    @property
    def key(self) -> str:
        """Name of the arm's folder."""


AnyArm = TypeVar("AnyArm", bound=Arm)


@dataclass(frozen=True, slots=True)
class ResumableBenchmark:
    """Where a benchmark is stored, and on which base.

    Attributes:
        folder: Folder of all arms.
        base: The base model.
        replay: Cache of the base's answers to shipped prompts.
        quick: Whether this is the quick form, with the tiny model.
    """

    folder: Path
    base: PinnedBase
    replay: Path
    quick: bool

    def arm_folder(self, arm: Arm) -> Path:
        """Return the folder of an arm."""
        return self.folder / arm.key

    def result(self, arm: Arm) -> dict[str, Any] | None:
        """Return the result of an arm, or None if it is not done."""
        file = self.arm_folder(arm) / RESULT
        return json.loads(file.read_bytes()) if file.exists() else None

    @property
    def threads(self) -> int:
        """Threads of torch."""
        return 1 if self.quick else len(os.sched_getaffinity(0))


def prepare_folders(folder: Path, data: Any, base: PinnedBase, quick: bool) -> tuple[Path, Path]:
    """Return the folder of the arms below `folder`, and that of the base's answers.

    Args:
        folder: Folder of the benchmark, with a folder for each combination of the other arguments.
        data: What results depend on besides code and base, as JSON.
        base: The base model.
        quick: Whether this is the quick form, which shares no answers with others.

    """
    digest = sha256(canonical_json([data, base.digest, quick]))[:8]
    own = (folder / digest).resolve()
    own.mkdir(parents=True, exist_ok=True)
    return own, own / REPLAY_FOLDER if quick else (PREPARED / REPLAY_FOLDER).resolve()


def source_files(package: Path) -> list[Path]:
    """Return the code that the results of a benchmark depend on: the trainer's, and its own in `package`."""
    names = ("generate.py", "make_batches.py", "resumable.py", "trainer_run.py")
    roots = (Path(services.trainer.__file__).parent, package)
    own = [Path(__file__).with_name(name) for name in names]
    return [*own, *(path for root in roots for path in sorted(root.rglob("*.py")))]


def code_digest(package: Path) -> str:
    """Return a digest of `source_files`, to mark results of different code."""
    return sha256(b"".join(path.read_bytes() for path in source_files(package)))[:8]


# --- running --------------------------------------------------------------------------------------------------------


@contextmanager
def exit_codes(console: Console) -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and a failed process into a message and an exit code.

    Raises:
        typer.Exit: With `INTERRUPTED` or `FAILED`.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        console.print("Stopped. Run the same command again to resume.")
        raise typer.Exit(INTERRUPTED) from None
    except ProcessFailed as failure:
        console.print(f"[red]{failure}")
        raise typer.Exit(FAILED) from None


def arms_left(bench: ResumableBenchmark, arms: Sequence[AnyArm], console: Console) -> list[AnyArm]:
    """Return the arms that have no result yet, and print how many there are."""
    left = [arm for arm in arms if bench.result(arm) is None]
    console.print(f"{len(arms)} arms, {len(arms) - len(left)} done, in {bench.folder}")
    return left


def run_arms(
    left: Sequence[AnyArm],
    run_arm: Callable[[AnyArm, StageCallback], Mapping[str, Any]],
    console: Console,
    *,
    work: Callable[[AnyArm], float] = lambda _: 1.0,
    after_arm: Callable[[], object] = lambda: None,
) -> None:
    """Run arms one after the other, with a progress bar.

    Args:
        left: The arms.
        run_arm: Runs an arm and returns its result.
        console: Where progress is printed.
        work: Returns the work of an arm relative to others. It decides the time that is shown as left.
        after_arm: Called after each arm.

    Raises:
        ProcessFailed: A process of an arm failed.

    """
    with Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=3600,
    ) as progress:
        task = progress.add_task("all arms", total=sum(map(work, left)))
        done = 0.0
        for arm in left:

            def show(stage: str, share: float, arm: AnyArm = arm, done: float = done) -> None:
                completed = done + work(arm) * share_done(stage, share)
                progress.update(task, description=f"{arm.key}: {stage}"[:44], completed=completed)

            result = run_arm(arm, show)
            done += work(arm)
            progress.update(task, completed=done)
            after_arm()
            console.print(f"{arm.key}: {result.get('verdict', 'measured')} ({result['seconds']:.0f} s)")


def share_done(stage: str, share: float) -> float:
    """Return the approximate share of an arm's work that is done within a stage, at a share of that stage."""
    start, end = next((ends for name, ends in STAGES.items() if stage.startswith(name)), (0.0, 0.0))
    return start + share * (end - start)


# --- the report -----------------------------------------------------------------------------------------------------


def make_report(
    name: str,
    bench: ResumableBenchmark,
    bars: Sequence[Any],
    results: Sequence[Mapping[str, Any]],
    code: str,
    **content: Any,
) -> dict[str, Any]:
    """Return the content of a file of results.

    Args:
        name: Name of the benchmark.
        bench: The benchmark.
        bars: Dataclasses with the fields `name`, `wanted`, `found`, `reached` and perhaps `world`.
        results: Results of all arms that are done, whichever command ran them.
        code: Digest of the present code (`code_digest`).
        content: Fields of this benchmark only.

    """
    return {
        "bench": name,
        "quick": bench.quick,
        "base": bench.base.name,
        "bars": [asdict(bar) for bar in bars],
        **content,
        "minutes": round(sum(result["seconds"] for result in results) / 60, 1),
        "same_code": {result["code"] for result in results} <= {code},
        "machine": machine(),
    }


def write_report(report: Mapping[str, Any], file: Path) -> None:
    """Write a file of results."""
    write_whole(file, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def print_bars(report: Mapping[str, Any], console: Console) -> None:
    """Print which bars are reached, and warn if results are of other code."""
    for bar in report["bars"]:
        mark = {True: "[green]reached[/]", False: "[red]NOT REACHED[/]", None: "not measured"}[bar["reached"]]
        name = f"{bar['world']}: {bar['name']}" if "world" in bar else bar["name"]
        console.print(f"{mark}  {name}: {bar['found']} (wanted: {bar['wanted']})")
    if not report["same_code"]:
        console.print(
            "[yellow]Some arms ran with other code than the present one. Delete them to run them again."
        )


def check_strict(report: Mapping[str, Any], strict: bool) -> None:
    """Raise `typer.Exit` with `FAILED` if all bars must be reached and one is not."""
    if strict and not all(bar["reached"] for bar in report["bars"]):
        raise typer.Exit(FAILED)
