"""Write `confseq.json`: capital and intervals of the bets of `sequential_test.py`, computed by the package `confseq`.

`confseq` (Howard, Waudby-Smith and Ramdas) is not a dependency. To repeat it, in an environment of its own:

    pip install "numpy<2" scipy matplotlib multiprocess confseq
    python tests/data/rollout/make_confseq.py

`confseq` is built with Boost. Its sources on the PYTHONPATH do as well; the values here are from its commit 70b1ef3.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from confseq.betting import diversified_betting_mart

BETS = (0.02, 0.05, 0.1, 0.18, 0.28, 0.42, 0.6, 0.9)
"""As in `services/rollout/core/sequential_test.py`."""
MEANS = (0.05, 0.3, 0.5, 0.62, 0.75, 0.95)


def log_capital(x: np.ndarray, m: float, sign: int) -> float:
    """Return the log of the last value of the martingale that bets on a mean above `m` (1) or below it (-1)."""
    bets = [lambda x, m, bet=bet: np.repeat(bet, len(x)) for bet in BETS]
    return float(
        np.log(
            diversified_betting_mart(
                x,
                m,
                lambdas_fns_positive=bets,
                lambdas_fns_negative=bets,
                lambdas_weights=np.repeat(1 / len(BETS), len(BETS)),
                theta=1.0 if sign == 1 else 0.0,
                convex_comb=True,
                trunc_scale=1.0,
                m_trunc=False,
            )[-1]
        )
    )


def interval(x: np.ndarray, alpha: float) -> tuple[float, float]:
    """Return the means that neither side refutes at `alpha` / 2, on a grid of a thousand."""
    grid, enough = np.arange(0.001, 0.9995, 0.001), np.log(2 / alpha)
    kept = [float(m) for m in grid if log_capital(x, m, 1) < enough and log_capital(x, m, -1) < enough]
    return min(kept), max(kept)


def main() -> None:
    """Compute the cases and write them next to this file."""
    source = np.random.default_rng(1)
    cases = []
    for size, rate in ((20, 0.5), (150, 0.62), (400, 0.9)):
        x = (source.random(size) < rate).astype(float)
        x[: size // 5] = source.choice([0.25, 0.5, 0.75], size // 5)
        low, high = interval(x, 0.05)
        cases.append(
            {
                "scores": x.tolist(),
                "means": MEANS,
                "log_above": [log_capital(x, m, 1) for m in MEANS],
                "log_below": [log_capital(x, m, -1) for m in MEANS],
                "alpha": 0.05,
                "low": low,
                "high": high,
            }
        )
    Path(__file__).with_name("confseq.json").write_text(json.dumps({"cases": cases}) + "\n")


if __name__ == "__main__":
    main()
