"""Candidate, stable, base and control as one model in memory, active one at a time. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from peft import PeftModel
from torch.nn.functional import kl_div, nll_loss

from services.trainer.base.memory import SCORE_BATCH, BatchLimit, run_in_batches
from services.trainer.base.model import (
    answer_logits,
    by_length,
    end_tokens,
    load_merged,
    load_whole_model,
)
from services.trainer.gate.eval_set import LikelihoodScores, ScoredText
from services.trainer.progress import ProgressCallback, ignore_progress
from shared.chat_format import ChatFormat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Model: TypeAlias = PreTrainedModel | PeftModel

Side = Literal["candidate", "stable", "base", "control"]
SIDES: tuple[Side, Side] = ("candidate", "stable")


class ModelPair:
    """Candidate and stable, the base, and a control if there is one.

    A context manager, which leaves the base as it was.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        folders: dict[Side, Path | None],
        threads: int = 1,
        *,
        merged: bool = False,
    ) -> None:
        """Prepare the pair; entering the context loads it.

        Args:
            base: The base model.
            folders: Where each version is stored: an adapter, a whole model, or None for the base itself.
            threads: Threads of torch while a whole model is loaded.
            merged: Whether adapters are merged into copies of the base, as embedded inference serves them, or are
                computed next to its weights, as vLLM does.
        """
        self.base = base
        self._folders: dict[Side, Path | None] = {"base": None, **folders}
        self._threads = threads
        self._merged = merged
        self._whole_models: dict[Side, PreTrainedModel] = {}
        self._adapted: PeftModel | None = None

    def __enter__(self) -> ModelPair:
        for side, folder in self._folders.items():
            if folder is None:
                continue
            if not (folder / "adapter_config.json").exists():
                self._whole_models[side] = load_whole_model(folder, self.base, self._threads)
            elif self._merged:
                self._whole_models[side] = load_merged(self.base, folder)
            elif self._adapted is None:
                self._adapted = PeftModel.from_pretrained(
                    self.base, folder, adapter_name=side, is_trainable=False
                ).eval()
            else:
                self._adapted.load_adapter(folder, adapter_name=side, is_trainable=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._whole_models.clear()
        if self._adapted is not None:
            self._adapted.unload()
            self._adapted = None

    def is_base(self, side: Side) -> bool:
        """Return whether this version is the base itself."""
        return self._folders[side] is None

    @contextmanager
    def activate(self, side: Side) -> Iterator[Model]:
        """Yield the model of one version. It is valid inside the block only."""
        if side in self._whole_models:
            yield self._whole_models[side]
        elif self._adapted is None:
            yield self.base
        elif self.is_base(side):
            with self._adapted.disable_adapter():
                yield self._adapted
        else:
            self._adapted.set_adapter(side, inference_mode=True)
            yield self._adapted


def score_likelihoods(
    models: ModelPair,
    chat: ChatFormat,
    texts: Sequence[ScoredText],
    progress: ProgressCallback = ignore_progress,
    limit: BatchLimit | None = None,
    sides: tuple[Side, Side] = SIDES,
) -> list[LikelihoodScores]:
    """Return the likelihood of each answer given its conversation, under two versions (`sides`).

    The end of the turn is not scored. An empty answer has a likelihood of 0 nats. Batches get smaller if memory does
    not suffice, and `limit` keeps their size for the next call.
    """
    scores = [LikelihoodScores(0.0, 0.0, 0.0)] * len(texts)
    ends = sorted(end_tokens(models.base, chat))

    def score(batch: Sequence[int]) -> None:
        logits = {}
        for side in sides:
            with models.activate(side) as model:
                logits[side] = answer_logits(model, chat, [texts[i] for i in batch])
        for i, (candidate, tokens), (stable, _) in zip(batch, *(logits[side] for side in sides), strict=True):
            if len(tokens):
                scores[i] = _compare(candidate, stable, tokens, ends)

    run_in_batches(by_length(chat, texts), limit or BatchLimit(SCORE_BATCH), score, progress)
    return scores


def _compare(
    candidate_logits: torch.Tensor, stable_logits: torch.Tensor, tokens: torch.Tensor, ends: list[int]
) -> LikelihoodScores:
    """Compare one answer's logits `(seq, vocabulary)`; `tokens` `(seq,)` are the answer."""

    def continuation(log_probabilities: torch.Tensor) -> float:
        return float((1 - log_probabilities[:, ends].exp().sum(-1)).prod())

    candidate, stable = candidate_logits.log_softmax(-1), stable_logits.log_softmax(-1)
    divergence = kl_div(candidate, stable, reduction="none", log_target=True)
    return LikelihoodScores(
        candidate_nll=float(nll_loss(candidate, tokens)),
        stable_nll=float(nll_loss(stable, tokens)),
        kl=max(0.0, float(divergence.sum(-1).mean())),
        continuation=(continuation(candidate), continuation(stable)),
    )
