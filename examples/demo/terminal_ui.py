"""Progress display: a live table of stages on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

MARKS = {"waiting": "·", "running": "…", "done": "✓", "failed": "✗"}
STYLES = {"waiting": "dim", "running": "bold cyan", "done": "green", "failed": "bold red"}
PLAIN_EVERY_S = 10.0


@dataclass(slots=True)
class Stage:
    """One stage and its progress."""

    name: str
    title: str
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    detail: str = ""
    started: float = 0.0
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds that the stage has taken so far."""
        if self.state == "waiting":
            return 0.0
        return (self.ended or time.monotonic()) - self.started


@dataclass(slots=True)
class Screen:
    """Display of the stages, as a context manager. `stage` runs a stage, `detail` updates its text."""

    stages: list[Stage]
    console: Console = field(default_factory=Console)
    _live: Live | None = None
    _last_line_at: float = 0.0

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live = Live(self, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for stage in self.stages:
            style = STYLES[stage.state]
            took = f"{stage.seconds:6.1f} s" if stage.state != "waiting" else ""
            table.add_row(
                Text(MARKS[stage.state], style), Text(stage.title, style), Text(took, "dim"), stage.detail
            )
        return table

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run one stage in the block. An error marks it as failed and is raised again."""
        stage = next(stage for stage in self.stages if stage.name == name)
        stage.state, stage.started = "running", time.monotonic()
        self._print_line(f"{MARKS['running']} {stage.title}")
        try:
            yield stage
        except BaseException:
            stage.state, stage.ended = "failed", time.monotonic()
            raise
        stage.state, stage.ended = "done", time.monotonic()
        self._print_line(f"{MARKS['done']} {stage.title}: {stage.detail} ({stage.seconds:.1f} s)")

    def detail(self, stage: Stage, text: str) -> None:
        """Set the text of a running stage. Without a terminal, print it at most every 10 seconds."""
        if stage.state != "running":
            return
        stage.detail = text
        if self._live is None and time.monotonic() - self._last_line_at > PLAIN_EVERY_S:
            self._print_line(f"  {stage.title}: {text}")

    def seconds(self) -> dict[str, float]:
        """Return stage name -> seconds."""
        return {stage.name: round(stage.seconds, 1) for stage in self.stages}

    def _print_line(self, line: str) -> None:
        if self._live is None:
            self._last_line_at = time.monotonic()
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
