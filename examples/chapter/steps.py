"""The chapter's course: each step is a command that anybody could type, printed before it is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from openai import OpenAI
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from examples.chapter.rows import ROWS, read, targets
from examples.chapter.stack import model_folder, snapshot_file
from examples.polling import wait_until
from loopwright import Loopwright, Version

BATCHED_WITHIN_S = 60.0
TRAINED_WITHIN_S = 1800.0
SERVING_WITHIN_S = 120.0
ANSWER_TOKENS = 40


class ChapterFailed(Exception):
    """The chapter did not come to its end; the message says where it stopped and where to look."""


class Summary(BaseModel):
    """What happened, for programs: `summary.json`."""

    targets: dict[str, str]
    """question -> what was trained on it, as the run's dataset has it"""
    version: str
    verdict: str
    reasons: tuple[str, ...]
    dataset: str
    model: str
    before: dict[str, str]
    after: dict[str, str]
    answered_by: tuple[str, ...]
    """versions that gave the answers in `after`"""


@dataclass(slots=True)
class Chapter:
    """The chapter over a stack that is up."""

    root: Path
    urls: Mapping[str, str]
    file: Path = ROWS
    console: Console = field(default_factory=Console)

    def run(self) -> Summary:
        """All of it. Raises `ChapterFailed` where it stands still."""
        rows = read(self.file)
        with self._loop() as loop:
            self._title("What the model says before")
            before, _ = self._ask(loop, rows)
            self._title("Feedback becomes events (points 1, 2, 6, 7)")
            self._collect(loop, len(rows))
            self._title("Events become a dataset and a retrained model (points 3, 4, 5)")
            version = self._train(loop)
            trained = self._show_dataset(version, targets(rows))
            self._show_model(version)
            self._title("The retrained model answers")
            self._serve(loop, version)
            after, answered_by = self._ask(loop, rows)
        return Summary(
            targets=trained,
            version=version.version,
            verdict=version.verdict or "",
            reasons=version.reasons,
            dataset=str(snapshot_file(self.root, version.run_id or "")),
            model=str(model_folder(self.root, version.version)),
            before=before,
            after=after,
            answered_by=tuple(sorted(answered_by)),
        )

    # --- the steps ---

    def _collect(self, loop: Loopwright, rows: int) -> None:
        """Imports the rows, twice: a notebook that is run again must not count twice."""
        for _ in range(2):
            self._command("import", "seed", os.path.relpath(self.file))

        def settled() -> bool:
            status = loop.status()
            return status.pending == 0 and (status.accepted or 0) >= rows

        self._wait(settled, BATCHED_WITHIN_S, "the rows are still pending: see the processor's log")
        ledger = loop.status().ledger
        self._say("outcomes: " + ", ".join(f"{name} {count}" for name, count in sorted(ledger.items())))

    def _train(self, loop: Loopwright) -> Version:
        """A person says so: three rows are far below the threshold at which a run starts by itself."""
        self._command("train", "now")
        found: list[Version] = []

        def published() -> bool:
            found[:] = [version for version in loop.versions() if version.verdict]
            run = (loop.status().model_extra or {}).get("run") or {}
            if run.get("stage") == "failed":
                raise ChapterFailed(f"the run failed: {run.get('reason')}")
            return bool(found)

        self._wait(published, TRAINED_WITHIN_S, "no version was published: see the trainer's log")
        version = found[-1]
        self._say(f"{version.version}: {version.verdict}")
        for reason in version.reasons:
            self._say(f"  {reason}")
        return version

    def _show_dataset(self, version: Version, wanted: dict[str, str]) -> dict[str, str]:
        """Prints the dataset's targets. Raises `ChapterFailed` unless they are exactly the chapter's."""
        path = snapshot_file(self.root, version.run_id or "")
        self._say(f"dataset {path}")
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        found = {json.loads(row["messages"])[-1][1]: str(row["answer"]) for row in rows}
        for question, target in found.items():
            self._say(f"  {question} -> {target}")
        if found != wanted or len(rows) != len(wanted):
            raise ChapterFailed(f'the dataset is not response + " " + feedback of each row; wanted: {wanted}')
        return found

    def _show_model(self, version: Version) -> None:
        folder = model_folder(self.root, version.version)
        self._say(f"model {folder}")
        for path in sorted(folder.iterdir()):
            self._say(f"  {path.name} ({path.stat().st_size:,} bytes)")

    def _serve(self, loop: Loopwright, version: Version) -> None:
        """A version that did not pass serves only where a person pins it: a few rows can prove nothing."""
        if version.verdict != "passed":
            self._say(
                f"The gate says {version.verdict}, so it does not serve by itself. A person may pin it:"
            )
            self._command("rollout", "pin", version.version)

        def serving() -> bool:
            return self._answer("Hello")[1] == version.version

        self._wait(
            serving, SERVING_WITHIN_S, "the version was not taken over: see the inference service's log"
        )

    # --- the doors ---

    def _loop(self) -> Loopwright:
        return Loopwright(
            feedback_url=self.urls["feedback"],
            console_url=self.urls["console"],
            inference_url=self.urls["inference"],
        )

    def _ask(self, loop: Loopwright, rows: list[dict[str, str]]) -> tuple[dict[str, str], set[str]]:
        """(question -> answer, versions that answered)"""
        answers, versions = {}, set()
        for row in rows:
            answers[row["input"]], version = self._answer(row["input"])
            versions.add(version)
            self._say(f"{row['input']} -> {' '.join(answers[row['input']].split())}")
        self._say(f"answered by {', '.join(sorted(versions))}", style="dim")
        return answers, versions

    def _answer(self, question: str) -> tuple[str, str]:
        """(answer, version), through the OpenAI client, as an app would ask."""
        with OpenAI(base_url=f"{self.urls['inference']}/v1", api_key="none needed", timeout=300) as chat:
            made = chat.chat.completions.create(
                model="assistant",
                messages=[{"role": "user", "content": question}],
                max_tokens=ANSWER_TOKENS,
                temperature=0,
            )
        return made.choices[0].message.content or "", made.model

    def _command(self, *words: str) -> None:
        """Prints a command of the CLI and runs it. Raises `ChapterFailed` if it does not end well."""
        self.console.print(
            f"[bold]$ loopwright {escape(' '.join(words))}[/]", highlight=False, soft_wrap=True
        )
        said = subprocess.run(
            [sys.executable, "-m", "loopwright", *words],
            env=os.environ
            | {
                "LOOPWRIGHT_FEEDBACK_URL": self.urls["feedback"],
                "LOOPWRIGHT_CONSOLE_URL": self.urls["console"],
            },
            capture_output=True,
            text=True,
            check=False,
        )
        for line in (said.stdout + said.stderr).splitlines():
            self._say(line)
        if said.returncode != 0:
            raise ChapterFailed(f"`loopwright {' '.join(words)}` ended with status {said.returncode}")

    def _title(self, text: str) -> None:
        self.console.print(f"\n[bold cyan]{text}[/]", highlight=False)

    def _say(self, text: str, style: str = "") -> None:
        self.console.print("  " + escape(text), style=style, highlight=False, soft_wrap=True)

    def _wait(self, ready: Callable[[], bool], seconds: float, otherwise: str) -> None:
        wait_until(ready, seconds, otherwise, ChapterFailed)
