"""Choice of tokens: each row by its own sampling, from given random numbers."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from services.inference.core.generation_request import Sampling
from services.inference.engine import token_sampling
from services.inference.engine.token_sampling import choose_tokens

GREEDY = Sampling()


def scores_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([[math.log(p) if p else -math.inf for p in probabilities]])


def chosen(scores: torch.Tensor, sampling: Sampling, draws: int = 2000) -> Counter[int]:
    """Return how often each token is chosen, with evenly spread random numbers."""
    points = [(i + 0.5) / draws for i in range(draws)]
    tokens, finite = choose_tokens(scores.repeat(draws, 1), [sampling] * draws, points)
    assert bool(finite.all())
    return Counter(tokens.tolist())


def test_tokens_are_drawn_with_the_probabilities_of_the_scores() -> None:
    counts = chosen(scores_of(0.5, 0.3, 0.2, 0.0), Sampling(1.0))
    assert [counts[token] for token in range(4)] == [1000, 600, 400, 0]


def test_temperature_sharpens_and_flattens_the_distribution() -> None:
    scores = scores_of(0.8, 0.2)
    assert chosen(scores, Sampling(0.5))[0] == pytest.approx(2000 * 0.64 / 0.68, abs=1)
    assert chosen(scores, Sampling(2.0))[0] == pytest.approx(2000 * 2 / 3, abs=1)


@pytest.mark.parametrize("candidates", [256, 2])
def test_top_p_keeps_the_smallest_set_that_reaches_it(
    candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_sampling, "NUCLEUS_CANDIDATES", candidates)
    scores = scores_of(0.1, 0.4, 0.2, 0.3)
    assert set(chosen(scores, Sampling(1.0, 0.95))) == {0, 1, 2, 3}
    assert set(chosen(scores, Sampling(1.0, 0.85))) == {1, 2, 3}
    assert set(chosen(scores, Sampling(1.0, 0.6))) == {1, 3}
    counts = chosen(scores, Sampling(1.0, 0.6))
    assert counts[1] == pytest.approx(2000 * 4 / 7, abs=1)
    assert set(chosen(scores, Sampling(1.0, 0.4 - 1e-6))) == {1}


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(1.0, 0.0), Sampling(1e-9), Sampling(1e-320), Sampling(2.0, 1e-9)]
)
def test_extreme_values_choose_the_most_likely_token(sampling: Sampling) -> None:
    assert chosen(scores_of(0.26, 0.5, 0.24), sampling) == {1: 2000}


def test_each_row_has_its_own_sampling() -> None:
    scores = torch.randn(6, 500, generator=torch.Generator().manual_seed(1))
    samplings = [GREEDY, Sampling(1.0), Sampling(0.7, 0.5), Sampling(2.0, 0.99), GREEDY, Sampling(1.3)]
    draws = [0.9, 0.1, 0.2, 0.3, 0.4, 0.999]
    together, _ = choose_tokens(scores, samplings, draws)
    alone = [
        int(choose_tokens(scores[i : i + 1], [samplings[i]], [draws[i]])[0]) for i in range(len(samplings))
    ]
    assert together.tolist() == alone
    assert alone[0] == int(scores[0].argmax())


def test_impossible_tokens_are_never_chosen() -> None:
    scores = torch.full((1, 50), -math.inf)
    scores[0, 7] = scores[0, 20] = 3.0
    for draw in (0.0, 0.5, 1 - 2**-53):
        for top_p in (1.0, 0.999):
            tokens, _ = choose_tokens(scores, [Sampling(1.0, top_p)], [draw])
            assert int(tokens) in {7, 20}


def test_rows_with_scores_that_are_not_finite_are_reported() -> None:
    scores = torch.zeros(4, 5)
    scores[1, 2] = math.nan
    scores[2, 0] = math.inf
    scores[3] = -math.inf
    for sampling in (GREEDY, Sampling(1.0), Sampling(1.0, 0.5)):
        tokens, finite = choose_tokens(scores.clone(), [sampling] * 4, [0.5] * 4)
        assert finite.tolist() == [True, False, False, False]
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < 5


def test_random_draws_follow_a_large_distribution() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(1, 40, generator=generator)
    draws = torch.rand(20_000, generator=generator, dtype=torch.float64).tolist()
    tokens, _ = choose_tokens(scores.repeat(len(draws), 1), [Sampling(1.5)] * len(draws), draws)
    expected = (scores[0] / 1.5).softmax(-1).double() * len(draws)
    counts = torch.bincount(tokens, minlength=40)
    assert chisquare(counts.numpy(), expected.numpy() * (len(draws) / float(expected.sum()))).pvalue > 1e-3
