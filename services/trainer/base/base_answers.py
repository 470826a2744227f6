"""Shipped prompts, and the base model's own answers to them, cached for replay data and the gate.

Replay data is the base's own answers to general prompts. It is mixed into training, so that the model does not forget
what it could do. The gate compares versions with the base's answers to other prompts. Answers are generated once per
base and data type, in batches and greedily, before the first run or within it:

    python -m services.trainer.base.base_answers

generates the missing ones for LOOPWRIGHT_BASE_MODEL. `data/base_answers/` ships those of the demo's base (`make
base-answers` writes them), so that set-up need not generate them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from transformers import logging as transformers_logging

from services.trainer.base import dtype
from services.trainer.base.device import device_kind, use_device
from services.trainer.base.memory import GENERATE_BATCH, BatchLimit, release_memory
from services.trainer.base.shape import base_shape
from services.trainer.base.tokenization import is_rendered, load_chat
from services.trainer.core.eval_size import SKILL_TOKENS, eval_size
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
"""Answers of the demo's base: `<digest8>-<dtype>.jsonl`, a header line and then one `BaseAnswer` per line."""
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


Generate = Callable[[Sequence[Prompt], int], list[tuple[str, bool]]]
"""(prompts, max_new_tokens) -> greedy answers, each with whether the base ended it."""


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
    """Answers of one base in `folder`: one file per base digest, data type, precision and settings.

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
    temperature: float = 0.0
    """Temperature of the answers; 0 for greedy ones."""

    def answers(
        self, prompts: Sequence[Prompt], chat: ChatFormat, progress: ProgressCallback
    ) -> list[BaseAnswer]:
        """Return the answers of the recipe's length, in the order of `prompts`. See `answers_of`."""
        return self.answers_of([(prompts, self.recipe.replay_new_tokens)], chat, progress)[0]

    def answers_of(
        self, asked: Sequence[tuple[Sequence[Prompt], int]], chat: ChatFormat, progress: ProgressCallback
    ) -> list[list[BaseAnswer]]:
        """Return the answers to several lists of prompts, each given with the longest answer in tokens.

        Loads the base once, and only if answers are missing.
        """
        models: list[PreTrainedModel] = []
        done, total = 0, sum(len(prompts) for prompts, _ in asked)

        def generate(missing: Sequence[Prompt], max_new_tokens: int) -> list[tuple[str, bool]]:
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
                self.temperature,
            )

        shipped = read_shipped(self.digest, self.fingerprint(chat), self.shipped_file)
        try:
            return [
                cached_answers(self.file, prompts, new_tokens, generate, shipped)
                for prompts, new_tokens in asked
            ]
        finally:
            if models:
                models.clear()
                release_memory()

    @property
    def file(self) -> Path:
        """The cache."""
        name = self.digest[:8] + ("" if self.dtype == "bfloat16" else f"-{self.dtype}")
        if self.quantization != "none":
            name += f"-{self.quantization}"
        if self.temperature:
            name += f"-t{self.temperature:g}"
        if self.chat_template_kwargs:
            name += f"-{sha256(canonical_json(dict(self.chat_template_kwargs)))[:8]}"
        return self.folder / f"{name}.jsonl"

    @property
    def shipped_file(self) -> Path:
        """The file that ships this base's answers, if any does."""
        return SHIPPED_ANSWERS / f"{self.digest[:8]}-{self.dtype}.jsonl"

    def fingerprint(self, chat: ChatFormat) -> str:
        """Return a digest of everything besides weights and prompts that determines an answer."""
        settings: dict[str, Any] = {
            "chat_template": chat.tokenizer.chat_template,
            "decoding": f"temperature {self.temperature:g}" if self.temperature else "greedy",
            "dtype": self.dtype,
            "eos_token": chat.tokenizer.eos_token,
            "new_tokens": self.recipe.replay_new_tokens,
        }
        if self.quantization != "none":
            settings["quantization"] = self.quantization
        if chat.template_kwargs:
            settings["chat_template_kwargs"] = chat.template_kwargs
        return sha256(canonical_json(settings))

    def ship(self, answers: Sequence[BaseAnswer], chat: ChatFormat) -> Path:
        """Write the answers to `shipped_file` and return it."""
        header = {"base_digest": self.digest, "fingerprint": self.fingerprint(chat)}
        rows = [header, *(asdict(answer) for answer in sorted(answers, key=lambda answer: answer.id))]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(self.shipped_file, lines.encode())
        return self.shipped_file


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
    replayed = shipped_prompts(REPLAY_PROMPTS, recipe.replay_prompts)
    prompts = shipped_prompts(EVAL_PROMPTS, recipe.gate_eval_prompts)
    size = eval_size(recipe, device_kind(), base_shape(base.path).weights)
    prompts += shipped_prompts(SAFETY_PROMPTS, size.safety)
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
    asked = [(prompts, recipe.replay_new_tokens)]
    for name, new_tokens in SKILL_TOKENS.items():
        questions = shipped_prompts(SKILL_PROMPTS.format(name), size.skills)
        asked.append(([one for one in questions if is_rendered(chat, one.messages)], new_tokens))
    answers = cache.answers(replayed, chat, progress)
    at_gate = replace(cache, temperature=recipe.gate_temperature)
    answers += [answer for answers in at_gate.answers_of(asked, chat, progress) for answer in answers]
    print(f"{base.name}: {len(answers)} answers available ({chosen})")
    if options.ship:
        print(f"wrote {cache.ship(answers, chat)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
