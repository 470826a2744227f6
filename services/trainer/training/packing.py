"""Micro-batches without padding: sequences are concatenated, and each attends only to itself.

Conversations of a line begin alike, with its system prompt or with the one that the chat template sets, and the two
answers of a preference have the same prompt. Where it saves enough, tokens that sequences have in common are computed
once: a pack is a tree of segments, and a segment attends to its ancestors and to itself. Likelihoods and gradients
equal those of the separate sequences up to rounding, and no sequence sees another.

A model that cannot isolate the segments gets the same sequences as padded rows. `Pack` hides the difference: it selects
the positions that predict the tokens of the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import torch

from services.trainer.training.rows import AnsweredPrompt

MIN_SHARED_TOKENS: Final = 64
"""Tokens that a shared segment must save: each one costs some more calls in every layer."""
GPU_MIN_SHARED: Final = 0.1
"""Share of a pack's tokens that shared segments must save on a GPU."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of a pack, `start` to `end`, that attend to `ancestors` (in order) and to themselves."""

    start: int
    end: int
    ancestors: tuple[range, ...] = ()

    @property
    def context(self) -> int:
        """Return the number of tokens before the segment: the position of its first token."""
        return sum(map(len, self.ancestors))


@dataclass(slots=True)
class Layout:
    """Segments of a pack, for the attention function.

    The tensors are those of variable-length attention on a GPU: for each segment the positions of its queries, and of
    its keys, which are those of its ancestors and its own.
    """

    segments: tuple[Segment, ...]
    query_ends: torch.Tensor
    """(segments + 1,), int32."""
    key_ends: torch.Tensor
    """(segments + 1,), int32."""
    key_index: torch.Tensor | None
    """(keys,), int64: the token of each key; None if no segment has ancestors, so that keys are the tokens."""
    max_queries: int
    """Tokens of the longest segment."""
    max_keys: int
    """Most tokens that a segment attends to."""
    prepared: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    """What the attention function prepares once for all layers, by (heads, key_heads, window)."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Inputs of one forward pass, and where it predicts the answers' tokens.

    Args:
        inputs: Arguments of the model: `input_ids` (batch, seq) and what the attention needs.
        select: (targets,), int64: positions in (batch * seq) whose hidden states predict the targets.
        targets: (targets,), int64: tokens of the answers of all sequences, in order.
        sequence: (targets,), int64: the sequence of each target.
        sequences: Number of sequences.
        tokens: Number of tokens of all sequences, each counted in full.

    """

    inputs: dict[str, Any]
    select: torch.Tensor
    targets: torch.Tensor
    sequence: torch.Tensor
    sequences: int
    tokens: int

    def to(self, device: torch.device | str) -> Pack:
        """Return the pack on a device, without waiting for the copies."""
        return replace(
            self,
            inputs={name: _moved(value, device) for name, value in self.inputs.items()},
            select=_moved(self.select, device),
            targets=_moved(self.targets, device),
            sequence=_moved(self.sequence, device),
        )

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` (targets,) over each sequence, (sequences,)."""
        return values.new_zeros(self.sequences).index_add(0, self.sequence, values)


Packer: TypeAlias = Callable[[Sequence[AnsweredPrompt]], Pack]
"""Makes a pack of sequences: `pack`, `pack_for_gpu` or `pad`."""


def pack(sequences: Sequence[AnsweredPrompt], *, min_shared: int = MIN_SHARED_TOKENS) -> Pack:
    """Return sequences as one row without padding.

    Args:
        sequences: At least one, each with a prompt.
        min_shared: Tokens that computing a common beginning once must save; 0 never shares.

    """
    ids, segments, places = _segments([sequence.ids for sequence in sequences], min_shared)
    layout = Layout(
        tuple(segments),
        _ends([one.end - one.start for one in segments]),
        _ends([one.end - one.start + one.context for one in segments]),
        _key_index(segments),
        max(one.end - one.start for one in segments),
        max(one.end - one.start + one.context for one in segments),
    )
    position = [index for one in segments for index in range(one.context, one.context + one.end - one.start)]
    inputs = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([position]),
        "use_cache": False,
        "packed": layout,
    }
    return _selecting(inputs, sequences, places)


def pack_for_gpu(sequences: Sequence[AnsweredPrompt]) -> Pack:
    """Return sequences as one row; common beginnings are computed once only where that saves a tenth of the tokens.

    Every layer must then gather the keys of all segments, which on a GPU costs more than a few tokens.
    """
    shared = pack(sequences)
    if shared.inputs["input_ids"].numel() <= (1 - GPU_MIN_SHARED) * shared.tokens:
        return shared
    return pack(sequences, min_shared=0)


def pad(sequences: Sequence[AnsweredPrompt]) -> Pack:
    """Return sequences as rows padded on the right."""
    width = max(len(sequence.ids) for sequence in sequences)
    ids = torch.zeros((len(sequences), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
    places = [range(row * width, row * width + len(one.ids)) for row, one in enumerate(sequences)]
    return _selecting({"input_ids": ids, "attention_mask": mask, "use_cache": False}, sequences, places)


def _selecting(
    inputs: dict[str, Any], sequences: Sequence[AnsweredPrompt], places: Sequence[Sequence[int]]
) -> Pack:
    """Return a pack that predicts each token of an answer from the token before it, given the sequences' places."""
    select: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    for number, (sequence, place) in enumerate(zip(sequences, places, strict=True)):
        first = len(sequence.prompt) - 1
        select += place[first : first + len(sequence.answer)]
        targets += sequence.answer
        owner += [number] * len(sequence.answer)
    return Pack(
        inputs,
        torch.tensor(select, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(owner, dtype=torch.long),
        len(sequences),
        sum(len(sequence.ids) for sequence in sequences),
    )


def _segments(
    rows: Sequence[tuple[int, ...]], min_shared: int
) -> tuple[list[int], list[Segment], list[list[int]]]:
    """Return the tokens of a pack, its segments, and for each row the index of each of its tokens."""
    ids: list[int] = []
    segments: list[Segment] = []
    places: list[list[int]] = [[] for _ in rows]

    def add(group: Sequence[int], start: int, end: int, ancestors: tuple[range, ...]) -> tuple[range, ...]:
        """Append tokens `start` to `end`, which the rows of a group share. Return the ancestors of what follows."""
        if start == end:
            return ancestors
        place = range(len(ids), len(ids) + end - start)
        ids.extend(rows[group[0]][start:end])
        segments.append(Segment(place.start, place.stop, ancestors))
        for row in group:
            places[row].extend(place)
        return (*ancestors, place)

    # Sorted rows with a common beginning are neighbours, and all of a group share what its first and last row share.
    pending: list[tuple[list[int], int, tuple[range, ...]]] = [
        (sorted(range(len(rows)), key=lambda row: rows[row]), 0, ())
    ]
    while pending:
        group, start, ancestors = pending.pop()
        if len(group) == 1 or not min_shared:
            for row in group:
                add([row], start, len(rows[row]), ancestors)
            continue
        common = _common_length(rows[group[0]], rows[group[-1]])
        if (len(group) - 1) * (common - start) >= min_shared:
            ancestors, start = add(group, start, common, ancestors), common
        parts: dict[int | None, list[int]] = {}
        for row in group:
            parts.setdefault(rows[row][common] if common < len(rows[row]) else None, []).append(row)
        for token, part in parts.items():
            if token is None:  # equal rows, which end here
                for row in part:
                    add([row], start, len(rows[row]), ancestors)
            else:
                pending.append((part, start, ancestors))
    return ids, segments, places


def _common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def _ends(lengths: Sequence[int]) -> torch.Tensor:
    """Return the cumulative lengths from 0, (lengths + 1,), int32."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _key_index(segments: Sequence[Segment]) -> torch.Tensor | None:
    if not any(segment.ancestors for segment in segments):
        return None
    return torch.tensor(
        [
            index
            for segment in segments
            for part in (*segment.ancestors, range(segment.start, segment.end))
            for index in part
        ]
    )


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, torch.Tensor):
        if value.device.type == "cpu" and torch.device(device).type == "cuda":
            value = value.pin_memory()  # a copy from other memory waits for what the GPU computes
        return value.to(device, non_blocking=True)
    if isinstance(value, Layout):
        return replace(
            value,
            query_ends=_moved(value.query_ends, device),
            key_ends=_moved(value.key_ends, device),
            key_index=_moved(value.key_index, device),
            prepared={},
        )
    return value
