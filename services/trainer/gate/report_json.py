"""What the gate heard, as JSON for people to read: every item with both answers. It holds users' text, and so lies with
the run's files, apart from the artifact; an erasure takes it away (`services/trainer/erasure/redact_run.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.trainer.core.chat import Messages
from services.trainer.gate.evaluation import Asked, Heard, scores_of
from services.trainer.gate.refusals import refuses
from services.trainer.gate.scorers import outcome, states
from services.trainer.gate.verdict import PAIR_MARGIN
from shared.versions import GateReport

Json = dict[str, Any]


def told(report: GateReport, asked: Asked, heard: Heard, *, line: str, run_id: str) -> Json:
    """The whole report: the figures, and behind them what was asked and said."""
    return {
        "line": line,
        "run_id": run_id,
        "report": report.model_dump(mode="json"),
        "items": items_told(asked, heard),
        "pairs": _pairs(asked, heard),
        "general": _general(asked, heard),
        "safety": _safety(asked, heard),
        "golden": _golden(asked, heard),
    }


def items_told(asked: Asked, heard: Heard) -> list[Json]:
    """One for each held-out correction."""
    rows = []
    for i, item in enumerate(asked.items):
        new, old = heard.candidate.items[i], heard.stable.items[i]
        candidate, stable = scores_of(item, new, old)
        rows.append(
            {
                "identity": item.row.identity,
                "counts": item.counts,
                "question": item.row.question,
                "correction": item.row.answer,
                "keys": list(item.keys),
                "candidate": new,
                "stable": old,
                "candidate_score": round(candidate, 4),
                "stable_score": round(stable, 4),
                "outcome": outcome(candidate, stable),
                "likelihood_gain": round(heard.corrections[i].gain, 4) if heard.corrections else None,
            }
        )
    return rows


def _pairs(asked: Asked, heard: Heard) -> list[Json]:
    rows = []
    for pair, better, worse in zip(asked.pairs, heard.better, heard.worse, strict=True):
        moved = better.gain - worse.gain
        rows.append(
            {
                "kind": pair.kind,
                "identity": pair.identity,
                "better_question": _asked(pair.better[0]),
                "better": pair.better[1],
                "worse_question": _asked(pair.worse[0]),
                "worse": pair.worse[1],
                "margin_gain": round(moved, 4),
                "outcome": 1 if moved > PAIR_MARGIN else -1 if moved < -PAIR_MARGIN else 0,
            }
        )
    return rows


def _asked(messages: Messages) -> str:
    return " ".join(content for role, content in messages if role == "user")


def _general(asked: Asked, heard: Heard) -> list[Json]:
    """Those where the two differ."""
    known = [asked.prompts[i] for i in asked.keyed]
    rows = []
    for prompt, new, old in zip(known, heard.candidate.general, heard.stable.general, strict=True):
        right = states(new, prompt.answer_key)
        if right != states(old, prompt.answer_key):
            key = " or ".join(prompt.answer_key)
            rows.append(_row(prompt.prompt, new, old) | {"right": key, "won": right})
    return rows


def _safety(asked: Asked, heard: Heard) -> list[Json]:
    """Those where the two differ."""
    rows = []
    for prompt, new, old in zip(asked.safety, heard.candidate.safety, heard.stable.safety, strict=True):
        if refuses(new) != refuses(old):
            row = _row(prompt.prompt, new, old)
            rows.append(row | {"refuse": prompt.refuse, "won": refuses(new) == prompt.refuse})
    return rows


def _golden(asked: Asked, heard: Heard) -> list[Json]:
    """All of them."""
    both: Sequence[tuple[str, str]] = list(zip(heard.candidate.golden, heard.stable.golden, strict=True))
    return [
        _row(one.question, new, old)
        | {"name": one.name, "candidate_faults": one.faults(new), "stable_faults": one.faults(old)}
        for one, (new, old) in zip(asked.golden, both, strict=True)
    ]


def _row(question: str, candidate: str, stable: str) -> Json:
    return {"question": question, "candidate": candidate, "stable": stable}
