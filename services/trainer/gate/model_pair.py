"""Candidate and stable over one base in memory, taking turns. For a run's process alone: torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch.nn.functional import kl_div, nll_loss

from services.trainer.base.model import SCORE_BATCH, answer_logits, end_tokens, length_batches, load_base
from services.trainer.core.chat import Messages
from services.trainer.progress import ProgressCallback, ignore_progress

Who = Literal["candidate", "stable"]
SIDES: tuple[Who, Who] = ("candidate", "stable")


@dataclass(frozen=True, slots=True)
class Weighed:
    """Of one text: how unlikely either finds it, and how far candidate is from stable on the way through it (Kullback
    and Leibler, stable to candidate). All in nats per token. `goes_on`: how likely either is not to end the turn on the
    way through it (candidate, stable)."""

    candidate: float
    stable: float
    kl: float
    goes_on: tuple[float, float] = (1.0, 1.0)

    @property
    def gain(self) -> float:
        """The log-likelihood ratio, candidate over stable."""
        return self.stable - self.candidate


@dataclass
class Speakers:
    """`folders`: adapters, or whole models; None is the base itself. As a context: the base is as it was afterwards."""

    base: Any
    folders: dict[Who, Path | None]
    threads: int = 1
    _whole: dict[Who, Any] = field(default_factory=dict)
    _adapted: Any = None

    def __enter__(self) -> Speakers:
        for who, folder in self.folders.items():
            if folder is None:
                continue
            if not (folder / "adapter_config.json").exists():
                self._whole[who] = load_base(folder, self.threads).to(self.base.dtype)
            elif self._adapted is None:
                self._adapted = PeftModel.from_pretrained(
                    self.base, folder, adapter_name=who, is_trainable=False
                ).eval()
            else:
                self._adapted.load_adapter(folder, adapter_name=who, is_trainable=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._whole.clear()
        if self._adapted is not None:
            self._adapted.unload()
            self._adapted = None

    @contextmanager
    def speaking(self, who: Who) -> Iterator[Any]:
        """The model that is this one's voice, for the length of the block."""
        if who in self._whole:
            yield self._whole[who]
        elif self._adapted is None:
            yield self.base
        elif self.folders[who] is None:
            with self._adapted.disable_adapter():
                yield self._adapted
        else:
            self._adapted.set_adapter(who, inference_mode=True)
            yield self._adapted


def weigh(
    speakers: Speakers, tokenizer: Any, said: Sequence[tuple[Messages, str]], told: ProgressCallback = ignore_progress
) -> list[Weighed]:
    """Each answer given its conversation, without the end of the turn; an empty one weighs nothing."""
    out = [Weighed(0.0, 0.0, 0.0)] * len(said)
    ends = sorted(end_tokens(speakers.base))
    done = 0
    for part in length_batches(tokenizer, said, SCORE_BATCH):
        logits = {}
        for who in SIDES:
            with speakers.speaking(who) as model:
                logits[who] = answer_logits(model, tokenizer, [said[i] for i in part])
        for i, (new, wanted), (old, _) in zip(part, logits["candidate"], logits["stable"], strict=True):
            if len(wanted):
                out[i] = _weighed(new, old, wanted, ends)
        done += len(part)
        told(done, len(said))
    return out


def _weighed(new: torch.Tensor, old: torch.Tensor, wanted: torch.Tensor, ends: list[int]) -> Weighed:
    def goes_on(likely: torch.Tensor) -> float:
        return float((1 - likely[:, ends].exp().sum(-1)).prod())

    candidate, stable = new.log_softmax(-1), old.log_softmax(-1)
    distance = kl_div(candidate, stable, reduction="none", log_target=True)
    return Weighed(
        float(nll_loss(candidate, wanted)),
        float(nll_loss(stable, wanted)),
        max(0.0, float(distance.sum(-1).mean())),
        (goes_on(candidate), goes_on(stable)),
    )
