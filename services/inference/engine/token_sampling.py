"""Choice of the next tokens: each row of a batch by its own sampling and its own random numbers. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState
from transformers.generation.logits_process import LogitsProcessorList

from services.inference.core.generation_request import Sampling
from services.inference.engine.generation_rows import ChoiceRow

NUCLEUS_CANDIDATES: Final = 256
"""Tokens that are sorted for `top_p`. The whole vocabulary is sorted only if these have too little probability."""

LOWEST_TEMPERATURE: Final = 1e-30
"""Lower ones would be 0 in float32."""


class TokenSampler(ContinuousBatchingLogitsProcessorList):
    """Logits processor of transformers' continuous batching that chooses the tokens.

    The manager of transformers has one generation configuration for all requests, and one random state. So it is told
    to take the most likely token, and this processor makes the chosen token the most likely one.

    Args:
        rows: The running rows by request id.

    """

    def __init__(self, rows: Mapping[str, ChoiceRow]) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.unusable: list[ChoiceRow] = []
        """Rows of the last step whose scores were not finite. The caller ends them."""
        self._rows = rows
        self._batch: list[ChoiceRow] = []

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        """Note which rows get a token in the next step, in the order of their scores."""
        self._batch = [
            self._rows[request.state.request_id] for request in requests_in_batch if request.has_new_token
        ]
        return arg_storage

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, logits_processor_args: torch.Tensor
    ) -> torch.FloatTensor:
        """Return `scores` (rows, vocabulary) with the chosen tokens at infinity. Changes them in place."""
        batch = self._batch
        tokens, finite = choose_tokens(
            scores[: len(batch)],
            [row.generation.request.sampling for row in batch],
            [row.random.random() for row in batch],
        )
        self.unusable = [row for row, usable in zip(batch, finite.tolist(), strict=True) if not usable]
        scores[: len(batch)].scatter_(1, tokens[:, None], torch.inf)
        return scores


def choose_tokens(
    scores: torch.Tensor, samplings: Sequence[Sampling], draws: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the next token of each row (rows,), and whether its scores were usable (rows,).

    Args:
        scores: Logits in float32, (rows, vocabulary).
        samplings: Sampling of each row.
        draws: A random number in [0, 1) for each row. It decides the token, given the scores.

    """
    best, tokens = scores.max(dim=-1)
    finite = torch.isfinite(best)  # the maximum is NaN if any score is
    whole = [i for i, s in enumerate(samplings) if s.temperature > 0 and s.top_p >= 1]
    nucleus = [i for i, s in enumerate(samplings) if s.temperature > 0 and s.top_p < 1]
    if whole:
        weights = _weights(scores, best, samplings, whole)
        tokens[whole] = _draw(weights, [draws[i] for i in whole])
    if nucleus:
        weights = _weights(scores, best, samplings, nucleus)
        limits = torch.tensor([samplings[i].top_p for i in nucleus], device=scores.device)
        weights, candidates = _nucleus(weights, limits)
        places = _draw(weights, [draws[i] for i in nucleus])
        tokens[nucleus] = candidates.gather(1, places[:, None])[:, 0]
    return tokens, finite


def _weights(
    scores: torch.Tensor, best: torch.Tensor, samplings: Sequence[Sampling], chosen: list[int]
) -> torch.Tensor:
    """Return the relative probabilities of all tokens for the chosen rows; the best token's is 1."""
    temperatures = torch.tensor(
        [max(samplings[i].temperature, LOWEST_TEMPERATURE) for i in chosen], device=scores.device
    )
    return ((scores[chosen] - best[chosen][:, None]) / temperatures[:, None]).exp_()


def _nucleus(weights: torch.Tensor, limits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most likely tokens that together reach the limit, with their weights, most likely first.

    At least one token is kept. Both tensors are (rows, candidates); tokens outside the nucleus have weight 0.
    """
    targets = limits * weights.sum(dim=-1)
    ordered, candidates = weights.topk(min(NUCLEUS_CANDIDATES, weights.shape[-1]))
    if bool((ordered.sum(dim=-1) < targets).any()):
        ordered, candidates = weights.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    inside = before < targets[:, None]
    inside[:, 0] = True
    return ordered * inside, candidates


def _draw(weights: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
    """Return an index for each row (rows,), chosen with the probabilities that the weights give."""
    totals = weights.cumsum(dim=-1, dtype=torch.float64)
    points = torch.tensor(draws, dtype=torch.float64, device=weights.device) * totals[:, -1]
    # Rounding may lift a point to the total, behind the last token that has any probability.
    points = torch.minimum(points, totals[:, -1].nextafter(torch.zeros_like(points)))
    chosen = torch.searchsorted(totals, points[:, None], right=True)[:, 0]
    return chosen.clamp_max(weights.shape[-1] - 1)
