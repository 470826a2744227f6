"""What the transformers engine requires of a model in memory. Its real parts are built in `open_model.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.inference.engine.generation_rows import ChoiceRow
from shared.events import Message


class Models(Protocol):
    """The versions in memory as the engine's thread uses them: `VersionModels`."""

    def load(self, version: str, folder: Path) -> Iterator[None]:
        """Load a version in small steps, unless it is in memory.

        Raises `BadArtifact` or `Retryable`, and then nothing has changed.
        """

    def unload(self, version: str) -> None:
        """Free a version's memory."""

    def versions(self) -> tuple[str, ...]:
        """Return the versions in memory."""


class Batch(Protocol):
    """The running rows as the engine's thread uses them: `ContinuousBatch`."""

    @property
    def max_length(self) -> int:
        """Limit of prompt and answer of one row, in tokens."""

    @property
    def rows(self) -> tuple[ChoiceRow, ...]:
        """The rows that run."""

    def has_place(self, version: str) -> bool:
        """Return whether one more row of the version may run."""

    def has_memory(self, length: int) -> bool:
        """Return whether the cache has room for a row of this length."""

    def add(self, row: ChoiceRow) -> None:
        """Let a row join the next step of its version."""

    def remove_ended(self) -> None:
        """Remove the rows that have ended or were cancelled."""

    def step(self) -> None:
        """Run one forward pass, pushing each token to its row. Does not raise."""


class Tokenizer(Protocol):
    """The tokenizer as the engine uses it, from several threads: `ChatTokenizer`."""

    @property
    def max_context(self) -> int:
        """Limit of prompt and answer together, in tokens."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Stop strings that the chat template needs."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids. Raises `Rejected` if the template refuses the conversation."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The model as the engine's thread uses it."""

    models: Models
    batch: Batch
