"""Shipped prompts, and the base model's own answers to them, cached for replay data and the gate.

Replay data is the base's own answers to general prompts. It is mixed into training, so that the model does not forget
what it could do. The gate compares versions with the base's answers to other prompts. Answers are generated once per
base, data type and decoding, in batches, before the first run or within it:

    python -m services.trainer.base.base_answers

generates the missing ones for LOOPWRIGHT_BASE_MODEL. `data/base_answers/` ships those of the demo's base (`make
base-answers` writes them), so that set-up need not generate them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from transformers import logging as transformers_logging

from services.trainer.base import dtype
from services.trainer.base.device import device_kind, use_device
from services.trainer.base.memory import GENERATE_BATCH, BatchLimit, release_memory
from services.trainer.base.shape import base_shape
from services.trainer.base.tokenization import is_rendered, load_chat
from services.trainer.core.decoding import GREEDY, Decoding, at_gate, draw_at_gate
from services.trainer.core.eval_size import GENERAL_TOKENS, REFUSAL_TOKENS, SKILL_TOKENS, EvalSize, eval_size
from services.trainer.core.hardware import Dtype, Quantization
from services.trainer.core.recipe import Recipe
from services.trainer.files import write_whole
from services.trainer.progress import ProgressCallback
from services.trainer.settings import TrainerSettings
from shared.adapters.base_model import find_base
from shared.chat_format import ChatFormat, TemplateKwargs
from shared.errors import Misconfigured
from shared.events import canonical_json, sha256
from shared.settings import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DATA: Final = Path(__file__).parents[1] / "data"
REPLAY_PROMPTS: Final = "general_replay.jsonl"
EVAL_PROMPTS: Final = "general_eval.jsonl"
SAFETY_PROMPTS: Final = "safety.jsonl"
SKILL_PROMPTS: Final = "skills/{}.jsonl"
"""File of a set of general skills, by its name (`core/eval_size.py`)."""
SHIPPED_ANSWERS: Final = DATA / "base_answers"
"""Answers of the demo's base: `<digest8>-<dtype>.jsonl`, with the decoding's name if they are not greedy. A header line
and then one `BaseAnswer` per line."""
SAVE_EVERY: Final = 128
"""Answers generated between two writes of the cache; an interruption loses fewer than these."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A shipped prompt."""

    id: str
    prompt: str
    answer_key: tuple[str, ...] = ()
    """Phrases; a correct answer contains one of them. Empty if correctness is not checked."""
    refuse: bool = False
    """Whether a safe model refuses it."""
    turns: tuple[tuple[str, str], ...] = ()
    """The conversation before the prompt."""

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """The prompt as a conversation."""
        return (*self.turns, ("user", self.prompt))

    def below(self, system: str) -> Prompt:
        """Return this prompt below a system prompt, with an id of its own."""
        return replace(
            self, id=f"{self.id}-{sha256(system.encode())[:8]}", turns=(("system", system), *self.turns)
        )

    @property
    def text(self) -> str:
        """The text of the conversation, by which a cached answer is recognised."""
        return "\n".join(content for _, content in self.messages)


@dataclass(frozen=True, slots=True)
class BaseAnswer:
    """The base's answer to a prompt, with at most `new_tokens` tokens."""

    id: str
    prompt: str
    answer: str
    new_tokens: int
    ended: bool
    """Whether the base ended the answer itself, within the limit."""

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """The prompt as a conversation."""
        return (("user", self.prompt),)


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts that the base answers, with the longest answer in tokens."""

    prompts: Sequence[Prompt]
    new_tokens: int
    decoding: Decoding = GREEDY


Generate = Callable[[Sequence[Prompt], int], list[tuple[str, bool]]]
"""(prompts, max_new_tokens) -> answers, each with whether the base ended it."""


def shipped_prompts(name: str, count: int | None = None) -> list[Prompt]:
    """Return the prompts of a shipped file, or `count` of them spread evenly, so that each kind is included."""
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    prompts = [
        Prompt(
            row["id"],
            row["prompt"],
            tuple(row.get("answer_key", ())),
            row.get("expect") == "refusal",
            tuple((role, content) for role, content in row.get("messages", ())),
        )
        for row in rows
    ]
    return prompts if count is None else spread(prompts, count)


def spread(rows: Sequence[T], count: int) -> list[T]:
    """Return `count` rows at even distances, or all rows if there are fewer."""
    return list(rows) if count >= len(rows) else [rows[i * len(rows) // count] for i in range(count)]


@dataclass(frozen=True, slots=True)
class BaseAnswerCache:
    """Answers of one base in `folder`: one file per base digest, data type, precision, decoding and settings.

    A version is compared with the base's answers in the version's own data type, so each type has its own file.
    """

    base: Path
    digest: str
    recipe: Recipe
    folder: Path
    dtype: Dtype = "bfloat16"
    limit: BatchLimit = field(default_factory=lambda: BatchLimit(GENERATE_BATCH))
    """Prompts answered at once. It gets smaller if memory does not suffice."""
    chat_template_kwargs: TemplateKwargs = field(default_factory=dict)
    quantization: Quantization = "none"
    """How the weights are loaded."""

    def answers(
        self, prompts: Sequence[Prompt], chat: ChatFormat, progress: ProgressCallback
    ) -> list[BaseAnswer]:
        """Return the greedy answers of the recipe's length, in the order of `prompts`. See `answers_of`."""
        return self.answers_of([Asked(prompts, self.recipe.replay_new_tokens)], chat, progress)[0]

    def answers_of(
        self, asked: Sequence[Asked], chat: ChatFormat, progress: ProgressCallback
    ) -> list[list[BaseAnswer]]:
        """Return the answers to several lists of prompts.

        Loads the base once, and only if answers are missing.
        """
        models: list[PreTrainedModel] = []
        done, total = 0, sum(len(one.prompts) for one in asked)

        def generate(
            missing: Sequence[Prompt], max_new_tokens: int, *, decoding: Decoding
        ) -> list[tuple[str, bool]]:
            nonlocal done
            from services.trainer.base.model import generate_with_endings, load_base  # noqa: PLC0415 - imports torch

            if not models:
                models.append(load_base(self.base, self.recipe.threads, self.dtype, self.quantization))
            before, done = done, done + len(missing)
            return generate_with_endings(
                models[0],
                chat,
                [prompt.messages for prompt in missing],
                max_new_tokens,
                lambda count, _: progress(before + count, total),
                self.limit,
                decoding,
            )

        shipped = {decoding: self.shipped(chat, decoding) for decoding in {one.decoding for one in asked}}
        try:
            return [
                cached_answers(
                    self.file(one.decoding),
                    one.prompts,
                    one.new_tokens,
                    partial(generate, decoding=one.decoding),
                    shipped[one.decoding],
                )
                for one in asked
            ]
        finally:
            if models:
                models.clear()
                release_memory()

    def file(self, decoding: Decoding = GREEDY) -> Path:
        """Return the file with the answers of one decoding."""
        name = self.digest[:8] + ("" if self.dtype == "bfloat16" else f"-{self.dtype}")
        if self.quantization != "none":
            name += f"-{self.quantization}"
        if decoding.name:
            name += f"-{decoding.name}"
        if self.chat_template_kwargs:
            name += f"-{sha256(canonical_json(dict(self.chat_template_kwargs)))[:8]}"
        return self.folder / f"{name}.jsonl"

    def shipped_file(self, decoding: Decoding = GREEDY) -> Path:
        """Return the file that ships this base's answers, if any does."""
        return (
            SHIPPED_ANSWERS / f"{'-'.join(filter(None, (self.digest[:8], self.dtype, decoding.name)))}.jsonl"
        )

    def shipped(self, chat: ChatFormat, decoding: Decoding = GREEDY) -> list[BaseAnswer]:
        """Return the shipped answers of one decoding; none if they were made for another base or other settings."""
        return read_shipped(self.digest, self.fingerprint(chat, decoding), self.shipped_file(decoding))

    def fingerprint(self, chat: ChatFormat, decoding: Decoding = GREEDY) -> str:
        """Return a digest of everything besides weights and prompts that determines an answer."""
        settings: dict[str, Any] = {
            "chat_template": chat.tokenizer.chat_template,
            "decoding": decoding.description,
            "dtype": self.dtype,
            "eos_token": chat.tokenizer.eos_token,
            "new_tokens": self.recipe.replay_new_tokens,
        }
        if self.quantization != "none":
            settings["quantization"] = self.quantization
        if chat.template_kwargs:
            settings["chat_template_kwargs"] = chat.template_kwargs
        return sha256(canonical_json(settings))

    def ship(self, answers: Sequence[BaseAnswer], chat: ChatFormat, decoding: Decoding = GREEDY) -> Path:
        """Write the answers of one decoding to its `shipped_file` and return it."""
        header = {"base_digest": self.digest, "fingerprint": self.fingerprint(chat, decoding)}
        rows = [header, *(asdict(answer) for answer in sorted(answers, key=lambda answer: answer.id))]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file = self.shipped_file(decoding)
        write_whole(file, lines.encode())
        return file


def read_shipped(base_digest: str, fingerprint: str, file: Path) -> list[BaseAnswer]:
    """Return the shipped answers, or none if `file` is missing or was made for another base or other settings."""
    if not file.exists():
        return []
    header, *lines = file.read_text(encoding="utf-8").splitlines()
    if json.loads(header) != {"base_digest": base_digest, "fingerprint": fingerprint}:
        return []
    return [BaseAnswer(**json.loads(line)) for line in lines]


def cached_answers(
    file: Path,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    generate: Generate,
    shipped: Sequence[BaseAnswer] = (),
) -> list[BaseAnswer]:
    """Return the answers in the order of `prompts`.

    They come from `shipped` and from `file` as far as these have them; the rest is generated and saved to `file`.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {
        (answer.id, answer.new_tokens): answer
        for answer in (*shipped, *(BaseAnswer(**json.loads(line)) for line in lines))
    }
    missing = [
        prompt
        for prompt in prompts
        if (prompt.id, max_new_tokens) not in known or known[prompt.id, max_new_tokens].prompt != prompt.text
    ]
    for start in range(0, len(missing), SAVE_EVERY):
        part = missing[start : start + SAVE_EVERY]
        for prompt, (answer, ended) in zip(part, generate(part, max_new_tokens), strict=True):
            known[prompt.id, max_new_tokens] = BaseAnswer(
                prompt.id, prompt.text, answer, max_new_tokens, ended
            )
        ordered = [known[key] for key in sorted(known)]
        write_whole(file, "".join(json.dumps(asdict(row)) + "\n" for row in ordered).encode())
    return [known[prompt.id, max_new_tokens] for prompt in prompts]


def main() -> int:
    """Generate the answers that a run with these settings needs and the cache does not have."""
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer.base.base_answers",
        description="Generate the base model's own answers to the shipped prompts. "
        "LOOPWRIGHT_BASE_MODEL names the base.",
    )
    parser.add_argument(
        "--ship",
        action="store_true",
        help="also write the answers to the trainer's data files, to be shipped",
    )
    options = parser.parse_args()
    try:
        settings = load(TrainerSettings)
        use_device(settings.device)
        base = find_base(settings.base_model)
    except Misconfigured as error:
        print(error, file=sys.stderr)
        return 1
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    recipe = settings.recipe()
    size = eval_size(recipe, device_kind(), base_shape(base.path).weights)
    chat = load_chat(base.path, settings.chat_template_kwargs)

    def progress(done: int, total: int) -> None:
        print(f"{base.name}: {done} of {total} answers", flush=True)

    chosen = dtype.resolve(recipe.dtype, base.path)
    cache = BaseAnswerCache(
        base.path,
        base.digest,
        recipe,
        settings.replay_dir,
        chosen,
        chat_template_kwargs=settings.chat_template_kwargs,
    )
    asked = asked_of_base(recipe, size, lambda prompt: is_rendered(chat, prompt.messages))
    by_decoding: dict[Decoding, list[BaseAnswer]] = defaultdict(list)
    for one, answers in zip(asked, cache.answers_of(asked, chat, progress), strict=True):
        by_decoding[one.decoding] += answers
    print(f"{base.name}: {sum(map(len, by_decoding.values()))} answers available ({chosen})")
    if options.ship:
        for decoding, answers in by_decoding.items():
            print(f"wrote {cache.ship(answers, chat, decoding)}")
    return 0


def asked_of_base(recipe: Recipe, size: EvalSize, is_usable: Callable[[Prompt], bool]) -> list[Asked]:
    """Return everything that a run with this recipe asks the base, apart from the product's system prompt.

    Args:
        recipe: The recipe.
        size: How many shipped questions the gate asks.
        is_usable: Whether the base's template takes a prompt.
    """
    return [
        Asked(shipped_prompts(REPLAY_PROMPTS, recipe.replay_prompts), recipe.replay_new_tokens),
        *asked_at_gate(
            recipe,
            size,
            general=shipped_prompts(EVAL_PROMPTS, recipe.gate_eval_prompts),
            safety=shipped_prompts(SAFETY_PROMPTS, size.safety),
            skills={
                name: list(filter(is_usable, shipped_prompts(SKILL_PROMPTS.format(name), size.skills)))
                for name in SKILL_TOKENS
            },
        ),
    ]


def asked_at_gate(
    recipe: Recipe,
    size: EvalSize,
    general: Sequence[Prompt],
    safety: Sequence[Prompt],
    skills: Mapping[str, Sequence[Prompt]],
) -> list[Asked]:
    """Return what a gate asks the base: general, harmless requests, each set of skills, then what is drawn.

    First come all draws of the general questions whose answers can be checked, then all of the harmful requests.

    Args:
        recipe: The recipe.
        size: How many shipped questions the gate asks.
        general: The general questions.
        safety: The safety prompts.
        skills: The questions of each set in `SKILL_TOKENS`.
    """
    once, draws = at_gate(recipe), [draw_at_gate(recipe, draw) for draw in range(1, size.draws + 1)]
    checked = [prompt for prompt in general if prompt.answer_key]
    harmful = [prompt for prompt in safety if prompt.refuse]
    harmless = [prompt for prompt in safety if not prompt.refuse]
    return [
        Asked(general, recipe.replay_new_tokens, once),
        Asked(harmless, recipe.replay_new_tokens, once),
        *(Asked(skills[name], tokens, once) for name, tokens in SKILL_TOKENS.items()),
        *(Asked(checked, GENERAL_TOKENS, draw) for draw in draws),
        *(Asked(harmful, REFUSAL_TOKENS, draw) for draw in draws),
    ]


if __name__ == "__main__":
    sys.exit(main())
