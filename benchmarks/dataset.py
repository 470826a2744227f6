"""`make bench-dataset`: time and memory of a snapshot, by stage and by number of corrections.

The corrections are synthetic, with the redundancy of real ones: facts about products in 5 to 20 wordings each, facts
and users of very different popularity, words that occur in a tenth of all questions, and a few users with false
answers. Each size runs in a process of its own at low priority. A stage's peak is the resident memory of the process
at its highest during the stage. `seconds` is wall time, and `cpu_seconds` the CPU time of the process, which other work
on the machine disturbs less. benchmarks/dataset.json has the figures.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import wraps
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.machine import machine
from services.trainer.core.recipe import Recipe
from services.trainer.database import open_database
from services.trainer.dataset import agreement, batch_table, data_card, snapshot, snapshot_files
from services.trainer.run.context import RunContext
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.worker import pipeline
from shared.events import Batch, Choice, ExampleRevision, Message, Signal
from shared.versions import VersionRef

SIZES: Final = "10000,30000,100000"
RESULTS: Final = Path(__file__).with_suffix(".json")
LINE: Final = "assistant"
BATCH: Final = 200
FALSE: Final = 3
"""Of each fifty users, the one with this remainder gives false answers."""
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
NICENESS: Final = 19
STAGES: Final[tuple[tuple[Any, str, str], ...]] = (
    (snapshot, "usable_rows", "read and check rows"),
    (agreement, "question_groups", "question groups"),
    (agreement, "claims", "claims"),
    (agreement, "similarity_by_subject", "subjects"),
    (agreement, "opponents", "rivals"),
    (snapshot, "_without_reserved", "reserved wordings"),
    (snapshot, "_limit_per_objective", "share per user"),
    (data_card, "build_card", "data card"),
    (snapshot_files, "write", "write"),
)
"""Functions whose time is counted, without the time of those among them that they call. The rest is "other"."""

ATTRIBUTES: Final = (
    "warranty,weight,price,colour,capacity,height,voltage,noise level,delivery time,return period,inventor,designer,"
    "battery life,cleaning interval,spare filter,service number,country of origin,energy label,opening hours,licence"
).split(",")
KINDS: Final = "kettle,toaster,lamp,heater,printer,router,blender,vacuum cleaner,camera,speaker".split(",")
TEMPLATES: Final = (
    "What is the {attribute} of the {name} {kind}?",
    "What is the {attribute} of the {name}?",
    "Can you tell me the {attribute} of the {name} {kind}?",
    "Please look up the {attribute} for the {name}.",
    "I bought a {name} {kind}. What is its {attribute}?",
    "Which {attribute} does the {name} have?",
    "{name} {kind}: {attribute}?",
    "Does the {kind} called {name} have a {attribute}, and which one?",
    "My neighbour asks about the {attribute} of her {name}.",
    "For the {name} I need to know the {attribute}, thanks.",
)
ENDINGS: Final = ("", " Is it the same for every colour?", " I need it for a customer.")
ANSWERS: Final = (
    "The {attribute} of the {name} is {value}.",
    "It is {value}.",
    "{value}, for every {name} {kind}.",
    "For the {name} that is {value} at the moment.",
)
app = typer.Typer(add_completion=False)


def name_of(dice: random.Random) -> str:
    """Return a pronounceable name of two or three syllables."""
    return "".join(
        dice.choice("bdfgklmnprstvz") + dice.choice("aeiou") + dice.choice(("", "", "l", "n", "r", "x"))
        for _ in range(dice.choice((2, 3, 3)))
    ).capitalize()


def corrections(count: int, seed: int = 1) -> Iterator[tuple[str, str, str]]:
    """Yield (user, question, answer), the same for the same arguments."""
    dice = random.Random(seed)
    names = [
        " ".join(name_of(dice) for _ in range(dice.choice((1, 1, 2)))) for _ in range(max(5, count // 12))
    ]
    facts = []
    for _ in range(max(20, count // 10)):
        words = {
            "attribute": dice.choice(ATTRIBUTES),
            "name": dice.choice(names),
            "kind": dice.choice(KINDS),
        }
        true = value_of(dice) if dice.random() < 0.6 else f"{name_of(dice)} {name_of(dice)}"
        asked = [template.format(**words) + ending for template in TEMPLATES for ending in ENDINGS]
        facts.append((words, true, dice.sample(asked, dice.randint(5, 20))))
    popularity = list(accumulate((rank + 10) ** -0.8 for rank in range(len(facts))))
    users = max(10, count // 12)
    activity = list(accumulate((rank + 20) ** -0.7 for rank in range(users)))
    for fact, user in zip(
        dice.choices(facts, cum_weights=popularity, k=count),
        dice.choices(range(users), cum_weights=activity, k=count),
        strict=True,
    ):
        words, true, asked = fact
        value = value_of(dice) if user % 50 == FALSE else true
        yield f"user-{user}", dice.choice(asked), dice.choice(ANSWERS).format(value=value, **words)


def value_of(dice: random.Random) -> str:
    """Return a number with a unit."""
    return f"{dice.randint(2, 5000)} {dice.choice(('days', 'grams', 'volts', 'euros'))}"


def fill_table(folder: Path, count: int) -> None:
    """Store `count` corrections in a new database as a trainer does."""
    rows = iter(corrections(count))
    number = 0
    with closing(open_database(folder)) as db:
        while chunk := list(islice(rows, BATCH)):
            with db:
                batch_table.store_batch(db, batch_of(number, chunk))
            number += 1


def batch_of(number: int, rows: list[tuple[str, str, str]]) -> Batch:
    """Return the batch with this number, counted from 0."""
    examples = tuple(
        ExampleRevision(
            line=LINE,
            response_id=f"r{number * BATCH + i:08d}",
            revision=1,
            op="upsert",
            version=f"{LINE}@base-00000000",
            user_id=user,
            messages=(
                Message(role="system", content="You answer questions of customers."),
                Message(role="user", content=question),
            ),
            choices=(Choice(index=0, text="I am not sure about that."),),
            signals=(
                Signal(
                    event_id=f"e{number * BATCH + i:08d}",
                    kind="correction",
                    user_id=user,
                    value=answer,
                    occurred_at=START + timedelta(seconds=number * BATCH + i),
                ),
            ),
            responded_at=START,
            revised_at=START,
        )
        for i, (user, question, answer) in enumerate(rows)
    )
    return Batch(
        line=LINE,
        batch_id=f"{LINE}-0-{number + 1}",
        partition=0,
        number=number + 1,
        reason="count",
        examples=examples,
        content_hash=Batch.hash_of(examples),
        cut_at=START,
    )


class Stages:
    """Time of each stage without that of the stages within it, and its peak of resident memory."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak_mib: dict[str, int] = defaultdict(int)
        self._open = ["other"]
        self._since = time.monotonic()

    def switch(self, to: str | None) -> None:
        """Begin a stage within the current one, or (None) return to the one around it."""
        now = time.monotonic()
        self.seconds[self._open[-1]] += now - self._since
        for stage in self._open:
            self.peak_mib[stage] = max(self.peak_mib[stage], peak_mib())
        reset_peak()
        self._since = now
        if to is None:
            self._open.pop()
        else:
            self._open.append(to)

    def watch(self, module: Any, function: str, stage: str) -> None:
        """Count the calls of a module's function as a stage."""
        inner: Callable[..., Any] = getattr(module, function)

        @wraps(inner)
        def outer(*args: Any, **keywords: Any) -> Any:
            self.switch(stage)
            try:
                return inner(*args, **keywords)
            finally:
                self.switch(None)

        setattr(module, function, outer)


def peak_mib() -> int:
    """Return the peak of resident memory since `reset_peak`, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))


def reset_peak() -> None:
    """Set the peak of resident memory to what is resident now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


class SilentProgress:
    """Reports nothing."""

    def report(self, *_: object, **__: object) -> None:
        """Do nothing."""

    def callback(self, _: str) -> Callable[[int, int], None]:
        """Return a callback that does nothing."""
        return lambda _done, _total: None


def measure(count: int, base: Path) -> dict[str, Any]:
    """Take a snapshot of `count` corrections and return what it cost."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["LOOPWRIGHT_DATA_DIR"] = name
        settings = TrainerSettings(line=LINE)
        fill_table(settings.folder, count)
        folder = settings.runs / "run"
        folder.mkdir(parents=True)
        config = RunConfig(
            run_id="run",
            line=LINE,
            through={"0": count},
            recipe=Recipe(),
            base=str(base),
            base_name=base.name,
            base_digest="0" * 64,
            stable=VersionRef(version=f"{LINE}@base-00000000", kind="base", digest="0" * 64, uri=""),
            stable_run=None,
            created_ms=0,
        )
        context = RunContext(folder, config, settings, SilentProgress(), threading.Event())  # type: ignore[arg-type]
        stages = Stages()
        for stage in STAGES:
            stages.watch(*stage)
        reset_peak()
        start, cpu = time.monotonic(), time.process_time()
        pipeline.take_snapshot(context)
        elapsed, cpu = time.monotonic() - start, time.process_time() - cpu
        stages.switch("other")
        card = data_card.read(folder)
        assert card is not None
        return {
            "corrections": count,
            "seconds": round(elapsed, 1),
            "cpu_seconds": round(cpu, 1),
            "peak_mib": max(stages.peak_mib.values()),
            "trains": card.training.rows,
            "heldout": card.measuring.rows,
            "groups": card.training.groups,
            "quarantined": card.held,
            "stages": {
                stage: {"seconds": round(seconds, 1), "peak_mib": stages.peak_mib[stage]}
                for stage, seconds in stages.seconds.items()
            },
        }


@app.command()
def main(
    base: Annotated[Path, typer.Option(help="Folder of a base model, for its tokenizer.")] = Path(
        ".loopwright/models/smollm2-135m-instruct"
    ),
    sizes: Annotated[str, typer.Option(help="Numbers of corrections, separated by commas.")] = SIZES,
    write: Annotated[bool, typer.Option(help="Write benchmarks/dataset.json.")] = True,
    only: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Take a snapshot of each size, print the costs of its stages, and write benchmarks/dataset.json."""
    if only:
        print(json.dumps(measure(only, base)))
        return
    results = []
    for count in map(int, sizes.split(",")):
        command = [sys.executable, "-m", "benchmarks.dataset", "--base", str(base), "--only", str(count)]
        done = subprocess.run(
            ["nice", "-n", str(NICENESS), *command], stdout=subprocess.PIPE, text=True, check=True
        )
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(results[-1], indent=1), flush=True)
    report = {"bench": "dataset", "niceness": NICENESS, "sizes": results, "machine": machine()}
    if write:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    app()
