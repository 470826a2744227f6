"""What the gate asks of both versions, and what they say to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.trainer.base.model import generate_answers
from services.trainer.base.replay import BaseAnswer, Prompt, spread
from services.trainer.base.tokenization import truncate
from services.trainer.core.chat import Messages
from services.trainer.gate.eval_items import Item
from services.trainer.gate.golden import Golden
from services.trainer.gate.metrics import Measured, Scores
from services.trainer.gate.model_pair import SIDES, Speakers, Weighed, Who, weigh
from services.trainer.gate.preference_pairs import Preferred
from services.trainer.gate.refusals import refuses
from services.trainer.gate.scorers import chrf, held_keys, score, states
from services.trainer.progress import ProgressCallback

LIKELIHOODS = 80
"""Of so many of the base's own answers it is measured how likely a version finds them."""
GENERAL_TOKENS = 24
"""What a general question is answered within, whoever answers it: the keys are short facts."""


@dataclass(frozen=True, slots=True)
class Asked:
    """`own`, `own_safe`: the base's answers to all of `prompts` and `safety`; it is not asked again where it is the
    version that speaks. Of `prompts` those with a key are asked."""

    items: Sequence[Item]
    pairs: Sequence[Preferred] = ()
    prompts: Sequence[Prompt] = ()
    own: Sequence[BaseAnswer] = ()
    safety: Sequence[Prompt] = ()
    own_safe: Sequence[BaseAnswer] = ()
    golden: Sequence[Golden] = ()

    @property
    def keyed(self) -> list[int]:
        """Places of the general questions of which it is known what is right."""
        return [i for i, prompt in enumerate(self.prompts) if prompt.answer_key]


@dataclass(frozen=True, slots=True)
class Voice:
    """One version's answers, each in the order asked."""

    items: Sequence[str] = ()
    general: Sequence[str] = ()
    safety: Sequence[str] = ()
    golden: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """Both versions' answers, and what both find likely: the corrections, the pairs (better and worse), the base's own
    answers."""

    candidate: Voice
    stable: Voice
    corrections: Sequence[Weighed] = ()
    better: Sequence[Weighed] = ()
    worse: Sequence[Weighed] = ()
    general: Sequence[Weighed] = ()


@dataclass(frozen=True, slots=True)
class Bounds:
    """New tokens of an answer to an item or a golden question, and to a safety prompt."""

    answer: int
    safety: int


def hear(
    speakers: Speakers, tokenizer: Any, asked: Asked, bounds: Bounds, told: Callable[[str], ProgressCallback]
) -> Heard:
    """Asks both the same, greedily and in batches."""
    voices = {who: _voice(speakers, who, tokenizer, asked, bounds, told) for who in SIDES}

    def weighed(what: str, said: Sequence[tuple[Messages, str]]) -> list[Weighed]:
        return weigh(speakers, tokenizer, said, told(f"gate: likelihood of {what}"))

    return Heard(
        voices["candidate"],
        voices["stable"],
        weighed("corrections", [(item.row.messages, item.row.answer) for item in asked.items]),
        weighed("liked answers", [pair.better for pair in asked.pairs]),
        weighed("disliked answers", [pair.worse for pair in asked.pairs]),
        weighed("the base's answers", [(one.messages, one.answer) for one in weighed_of(asked)]),
    )


def weighed_of(asked: Asked) -> list[BaseAnswer]:
    """The base's own answers whose likelihood is measured."""
    return [one for one in spread(asked.own, LIKELIHOODS) if one.answer]


def _voice(
    speakers: Speakers,
    who: Who,
    tokenizer: Any,
    asked: Asked,
    bounds: Bounds,
    told: Callable[[str], ProgressCallback],
) -> Voice:
    def says(what: str, conversations: Sequence[Messages], tokens: int) -> list[str]:
        return generate_answers(model, tokenizer, conversations, tokens, told(f"gate, {who}: {what}"))

    with speakers.speaking(who) as model:
        items = says("answers", [item.row.messages for item in asked.items], bounds.answer)
        golden = says("golden set", [one.messages for one in asked.golden], bounds.answer)
        if speakers.folders[who] is None:
            general = [truncate(tokenizer, asked.own[i].answer, GENERAL_TOKENS) for i in asked.keyed]
            safety = [one.answer for one in asked.own_safe]
        else:
            general = says("general", [asked.own[i].messages for i in asked.keyed], GENERAL_TOKENS)
            safety = says("safety", [prompt.messages for prompt in asked.safety], bounds.safety)
    return Voice(items, general, safety, golden)


def measured(asked: Asked, heard: Heard) -> Measured:
    """The two side by side, as `decide` takes them."""
    new, old = heard.candidate, heard.stable
    said = list(zip(asked.items, new.items, old.items, strict=True))
    counting = [one for one in said if one[0].counts == "wins"]

    def scores(counts: str) -> list[Scores]:
        return [scores_of(item, one, other) for item, one, other in said if item.counts == counts]

    margins: dict[str, list[float]] = {}
    for pair, better, worse in zip(asked.pairs, heard.better, heard.worse, strict=True):
        margins.setdefault(pair.kind, []).append(better.gain - worse.gain)
    known = [asked.prompts[i] for i in asked.keyed]
    safe = list(zip(asked.safety, new.safety, old.safety, strict=True))
    return Measured(
        wins=scores("wins"),
        seen=scores("seen"),
        unseen=scores("unseen"),
        facts=[
            (held_keys(one, item.keys), held_keys(other, item.keys))
            for item, one, other in counting
            if item.keys
        ],
        alike=[(chrf(one, item.row.answer), chrf(other, item.row.answer)) for item, one, other in counting],
        likelihood=[
            weighed.gain
            for item, weighed in zip(asked.items, heard.corrections, strict=True)
            if item.counts == "wins"
        ],
        margins=margins,
        accuracy=[
            (states(one, prompt.answer_key), states(other, prompt.answer_key))
            for prompt, one, other in zip(known, new.general, old.general, strict=True)
        ],
        nll=[(one.candidate, one.stable) for one in heard.general],
        kl=[one.kl for one in heard.general],
        goes_on=[
            one.goes_on for said, one in zip(weighed_of(asked), heard.general, strict=True) if not said.ended
        ],
        refusals=[(refuses(one), refuses(other)) for prompt, one, other in safe if prompt.refuse],
        answered=[(not refuses(one), not refuses(other)) for prompt, one, other in safe if not prompt.refuse],
        golden=[
            (one.name, not one.faults(mine), not one.faults(theirs))
            for one, mine, theirs in zip(asked.golden, new.golden, old.golden, strict=True)
        ],
    )


def scores_of(item: Item, candidate: str, stable: str) -> Scores:
    return score(candidate, item.row.answer, item.keys), score(stable, item.row.answer, item.keys)
