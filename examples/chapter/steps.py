"""Steps of the chapter. Each is a command that a user could type; it is printed before it runs."""

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

from examples.chapter.rows import ROWS, read_rows, targets
from examples.chapter.stack import model_folder, snapshot_file
from examples.polling import wait_until
from loopwright import Loopwright, Version

BATCHED_WITHIN_S = 60.0
TRAINED_WITHIN_S = 1800.0
SERVING_WITHIN_S = 120.0
ANSWER_TOKENS = 40


class ChapterFailed(Exception):
    """The chapter did not complete. The message names the step and where to look."""


class Summary(BaseModel):
    """Results of a run, written to `summary.json`."""

    targets: dict[str, str]
    """Question -> training target, from the run's dataset."""
    version: str
    verdict: str
    reasons: tuple[str, ...]
    dataset: str
    model: str
    before: dict[str, str]
    after: dict[str, str]
    answered_by: tuple[str, ...]
    """Versions that gave the answers in `after`."""


@dataclass(slots=True)
class ChapterRun:
    """One run of the chapter on a running stack."""

    root: Path
    urls: Mapping[str, str]
    file: Path = ROWS
    console: Console = field(default_factory=Console)

    def run(self) -> Summary:
        """Run all steps.

        Raises:
            ChapterFailed: if a step fails or times out.

        """
        rows = read_rows(self.file)
        with self._sdk() as loop:
            self._title("Ask the model before training")
            before, _ = self._ask(loop, rows)
            self._title("Import the feedback as events (points 1, 2, 6, 7)")
            self._collect(loop, len(rows))
            self._title("Build the dataset and retrain the model (points 3, 4, 5)")
            version = self._train(loop)
            trained = self._show_dataset(version, targets(rows))
            self._show_model(version)
            self._title("Ask the retrained model")
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
        """Import the rows twice, to show that rerunning a notebook does not count its rows twice."""
        for _ in range(2):
            self._command("import", "seed", os.path.relpath(self.file))

        def settled() -> bool:
            status = loop.status()
            return status.pending == 0 and (status.accepted or 0) >= rows

        self._wait(settled, BATCHED_WITHIN_S, "the rows are still pending; see the processor's log")
        ledger = loop.status().ledger
        self._print("outcomes: " + ", ".join(f"{name} {count}" for name, count in sorted(ledger.items())))

    def _train(self, loop: Loopwright) -> Version:
        """Start a run by command, because three rows are far below the threshold of an automatic run."""
        self._command("train", "now")
        published: list[Version] = []

        def is_published() -> bool:
            published[:] = [version for version in loop.versions() if version.verdict]
            run = (loop.status().model_extra or {}).get("run") or {}
            if run.get("stage") == "failed":
                raise ChapterFailed(f"the run failed: {run.get('reason')}")
            return bool(published)

        self._wait(is_published, TRAINED_WITHIN_S, "no version was published; see the trainer's log")
        version = published[-1]
        self._print(f"{version.version}: {version.verdict}")
        for reason in version.reasons:
            self._print(f"  {reason}")
        return version

    def _show_dataset(self, version: Version, expected: dict[str, str]) -> dict[str, str]:
        """Print and return the dataset's targets; raise `ChapterFailed` if they differ from the chapter's."""
        path = snapshot_file(self.root, version.run_id or "")
        self._print(f"dataset {path}")
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        actual = {json.loads(row["messages"])[-1][1]: str(row["answer"]) for row in rows}
        for question, target in actual.items():
            self._print(f"  {question} -> {target}")
        if actual != expected or len(rows) != len(expected):
            raise ChapterFailed(
                f'the dataset is not response + " " + feedback of each row; expected: {expected}'
            )
        return actual

    def _show_model(self, version: Version) -> None:
        folder = model_folder(self.root, version.version)
        self._print(f"model {folder}")
        for path in sorted(folder.iterdir()):
            self._print(f"  {path.name} ({path.stat().st_size:,} bytes)")

    def _serve(self, loop: Loopwright, version: Version) -> None:
        """Wait until the version serves; pin it if the gate did not pass it, because a few rows prove nothing."""
        if version.verdict != "passed":
            self._print(
                f"The gate's verdict is {version.verdict}, so the version is not rolled out. An operator can pin it:"
            )
            self._command("rollout", "pin", version.version)

        def serving() -> bool:
            return self._answer("Hello")[1] == version.version

        self._wait(serving, SERVING_WITHIN_S, "the version is not serving; see the inference service's log")

    # --- clients and commands ---

    def _sdk(self) -> Loopwright:
        return Loopwright(
            feedback_url=self.urls["feedback"],
            console_url=self.urls["console"],
            inference_url=self.urls["inference"],
        )

    def _ask(self, loop: Loopwright, rows: list[dict[str, str]]) -> tuple[dict[str, str], set[str]]:
        """Return question -> answer, and the versions that answered."""
        answers, versions = {}, set()
        for row in rows:
            answers[row["input"]], version = self._answer(row["input"])
            versions.add(version)
            self._print(f"{row['input']} -> {' '.join(answers[row['input']].split())}")
        self._print(f"answered by {', '.join(sorted(versions))}", style="dim")
        return answers, versions

    def _answer(self, question: str) -> tuple[str, str]:
        """Ask through the OpenAI client, as an app does; return the answer and the version."""
        with OpenAI(base_url=f"{self.urls['inference']}/v1", api_key="not needed", timeout=300) as chat:
            completion = chat.chat.completions.create(
                model="assistant",
                messages=[{"role": "user", "content": question}],
                max_tokens=ANSWER_TOKENS,
                temperature=0,
            )
        return completion.choices[0].message.content or "", completion.model

    def _command(self, *words: str) -> None:
        """Print a command of the CLI and run it; raise `ChapterFailed` if it fails."""
        self.console.print(
            f"[bold]$ loopwright {escape(' '.join(words))}[/]", highlight=False, soft_wrap=True
        )
        process = subprocess.run(
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
        for line in (process.stdout + process.stderr).splitlines():
            self._print(line)
        if process.returncode != 0:
            raise ChapterFailed(
                f"`loopwright {' '.join(words)}` failed with exit status {process.returncode}"
            )

    def _title(self, text: str) -> None:
        self.console.print(f"\n[bold cyan]{text}[/]", highlight=False)

    def _print(self, text: str, style: str = "") -> None:
        self.console.print("  " + escape(text), style=style, highlight=False, soft_wrap=True)

    def _wait(self, condition: Callable[[], bool], timeout_s: float, problem: str) -> None:
        wait_until(condition, timeout_s, problem, ChapterFailed)
