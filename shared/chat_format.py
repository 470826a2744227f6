"""Conversations as token ids, the same in serving, training, replay data and the gate.

`ChatFormat` is the only code that applies a base's chat template. What it guarantees:

- The ids of a conversation are those of the rendered template, as `apply_chat_template(tokenize=True)` returns them.
- Text of messages never becomes a special token, whatever it contains. It becomes the tokens of its characters.
  Characters for which a byte-level tokenizer has no token are left out: some write a control token for them.
- A training row is `prompt_ids` + `answer_ids`: the answer begins exactly where generation begins.

Does not import transformers; the caller passes a tokenizer.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any, Final

from shared.chat_template import PLAIN_STOP_STRINGS, plain_template_for
from shared.errors import Misconfigured, Rejected
from shared.literal_tokens import LiteralTokens, any_of, finds_other_spellings, missing_bytes, without_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TemplateKwargs = Mapping[str, Any]
"""Arguments of the chat template, such as `{"enable_thinking": False}`."""
Messages = Sequence[tuple[str, str]]
"""(role, content) pairs in order."""

MAX_REASON: Final = 200
"""Characters of a template's message that are reported."""
RESERVED_TEMPLATE_KWARGS: Final = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
        "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "strftime_now",
        "tokenize", "tokenizer_kwargs", "tools", "truncation",
    }
)  # fmt: skip
"""Arguments of `apply_chat_template` that are not for the template, or that the services set themselves."""
REASONING_SWITCHES: Final = ("enable_thinking", "thinking")
"""Template arguments by which bases turn reasoning on and off."""
_QUESTION, _ANSWER = "Qquestion", "Qanswer"
"""Contents of probes: words that no template contains."""
_PROBES: Final[tuple[Messages, ...]] = (
    (("user", _QUESTION),),
    (("system", "Be brief."), ("user", _QUESTION)),
    (("user", "Who?"), ("assistant", "Ada."), ("user", _QUESTION)),
    (("system", "Be brief."), ("user", "Who?"), ("assistant", "Ada."), ("user", _QUESTION)),
)
_BRACKETED: Final = re.compile(r"<<?/?[^\s<>\[\]]+>>?|\[/?[^\s<>\[\]]+\]")
_PLACEHOLDER_STYLE: Final = re.compile(r"</?[A-Za-z][A-Za-z0-9_ -]*>")
"""What people write for something to fill in, such as `<filename>`, and in markup."""


class TemplateRefused(Rejected):
    """The base's chat template does not render this conversation.

    `reason` is the template's own message, on one line.
    """

    code = "template_refused"

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(reason.split())[:MAX_REASON]
        super().__init__(f"the base's chat template refuses the conversation: {self.reason}")


@dataclass(frozen=True, slots=True)
class _Answer:
    """How a template writes an answer after the generation prompt.

    Attributes:
        before: Whitespace between the generation prompt and the answer.
        after: End of the turn.
        tail: End of the prompt, from the last message on.

    """

    before: str
    after: str
    tail: str


class ChatFormat:
    """The chat format of one base: conversations to token ids, and token ids to text. Thread-safe.

    Args:
        tokenizer: The base's tokenizer. The format uses it alone from now on; it gets the plain chat template if it has
            none.
        template_kwargs: Arguments of the chat template. Serving and training must use the same.
        today: Date for templates that write today's date. By default the date at the time of a call; training fixes it,
            so that a run which is resumed or repeated on another day sees the same prompts.

    Raises:
        Misconfigured: if the tokenizer or its chat template cannot be used at all.

    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: TemplateKwargs | None = None,
        today: date | None = None,
    ) -> None:
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise Misconfigured(
                "the base's tokenizer is not one of the tokenizers library: convert it to a tokenizer.json"
            )
        self.tokenizer = tokenizer
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        self.template_kwargs: dict[str, Any] = dict(template_kwargs or {})
        self._arguments = dict(self.template_kwargs)
        if today is not None:
            self._arguments["strftime_now"] = datetime.combine(today, time()).strftime
        self.uses_plain_template = tokenizer.chat_template is None
        if self.uses_plain_template:
            tokenizer.chat_template = plain_template_for(tokenizer)
        try:
            template = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise Misconfigured(f"the base's chat template cannot be used: {error}") from error
        added = {id_: token for id_, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        self.special = frozenset(token.content for token in added.values() if token.special)
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self._written = frozenset(token.content for token in added.values() if token.content in template)
        self._named = frozenset(str(text) for text in tokenizer.all_special_tokens)
        self.protected = self.special | self._written
        self._masks = {True: _Mask(self.special), False: _Mask(self.protected)}
        self._missing_bytes = missing_bytes(backend)
        self._always_literal = finds_other_spellings(backend, self.protected)
        self._literal: LiteralTokens | None = None
        self._lock = threading.Lock()
        self._ids_of_context: dict[str, list[int]] = {}
        self._probe_prompt = ""
        self._answer = self._probe_answer(_PROBES[0], {})

    # --- ids ---

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Return the ids of a conversation up to where the assistant's answer begins.

        Raises:
            TemplateRefused: if the template does not render the conversation, for instance because of a role.

        """
        masked, literal = self._masked(messages)
        return self._encode(self._render(masked, generate=True), literal)

    def answer_ids(self, text: str, *, ended: bool = True) -> list[int]:
        """Return the ids of an answer: what follows `prompt_ids` in a training row.

        Args:
            text: The answer.
            ended: Whether the end of the turn follows. A truncated answer has none.

        Raises:
            Misconfigured: if the base cannot be trained (`training_problem`).

        """
        answer = self._require_answer()
        body, literal = self._answer_text(text) if text.strip() else ("", {})
        before = answer.before if body else ""
        after = answer.after if ended else ""
        return self._continuation(before + body + after, literal)

    @property
    def end_of_turn_ids(self) -> list[int]:
        """Ids that the template puts after an answer."""
        return self._continuation(self._require_answer().after, {})

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which generation stops: the tokenizer's end of text, and the template's end of turn."""
        eos = self.tokenizer.eos_token_id
        ids = set() if eos is None else {int(eos)}
        if self._answer is not None:
            ids.update([token for token in self.end_of_turn_ids if token in self.special_ids][:1])
        return frozenset(ids)

    @property
    def pad_id(self) -> int:
        """Id for padding: the tokenizer's, or else its end of text."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(pad if pad is not None else eos or 0)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text without special tokens. Bytes that form no complete character become U+FFFD."""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def control_text(self, text: str) -> str | None:
        """Return the first special token that a text spells out, or None.

        For prompts that another program builds, in which such a text would become the token.
        """
        return self._masks[False].find(text)

    # --- marks ---

    @property
    def marks(self) -> frozenset[str]:
        """Texts by which this base's prompts separate turns; no text with one of them should train.

        These are the special tokens of the tokenizer, other tokens and bracketed words that the template writes, and
        for the plain template the beginnings of its lines. Special tokens like `<filename>`, which the template does
        not write and the tokenizer does not name, are left out: people write them as ordinary text.
        """
        special = {
            text
            for text in self.special
            if text in self._named or text in self._written or not _PLACEHOLDER_STYLE.fullmatch(text)
        }
        plain = PLAIN_STOP_STRINGS if self.uses_plain_template else ()
        return frozenset(special | self._written | self._bracketed_words()) | frozenset(plain)

    def _bracketed_words(self) -> set[str]:
        """Return the bracketed words that the template writes as text, such as `[INST]` for Llama 2."""
        words: set[str] = set()
        for probe in _PROBES:
            try:
                text = self._render([*probe, ("assistant", _ANSWER)], generate=False)
            except TemplateRefused:
                continue
            words.update(_BRACKETED.findall(text))
        return words

    # --- check of the base ---

    def training_problem(self) -> str | None:
        """Return why this base cannot be trained with this template and these arguments, with a remedy; or None.

        A training row must be the prompt as serving renders it, then the answer, then the end of the turn, also with a
        system prompt and in later turns. Conversations that the template refuses are left out.
        """
        problem = self._shape_problem({})
        without_reasoning = [{name: False} for name in REASONING_SWITCHES if name not in self.template_kwargs]
        if problem is not None:
            remedy = next((more for more in without_reasoning if self._shape_problem(more) is None), None)
            if remedy is not None:
                return f"{problem}. {self._advice(remedy)}"
            return (
                f"{problem}. Use another base, or put a chat_template.jinja into its folder that renders an answer "
                "directly after the generation prompt"
            )
        for more in without_reasoning:
            if self._probe_answer(_PROBES[0], more) != self._answer:
                return (
                    "this base reasons before it answers, but users' corrections contain no reasoning. "
                    f"{self._advice(more)}. To train it nevertheless, set {', '.join(more)} to true"
                )
        return None

    def _advice(self, more: TemplateKwargs) -> str:
        kwargs = json.dumps(self.template_kwargs | dict(more))
        return f"Set LOOPWRIGHT_CHAT_TEMPLATE_KWARGS={kwargs} for the trainer and for inference"

    def _shape_problem(self, more: TemplateKwargs) -> str | None:
        """Return why training rows have another shape with `more` arguments of the template, or None."""
        try:
            self._render(_PROBES[0], generate=True, more=more)
        except TemplateRefused as refused:
            return f"this base cannot be trained: {refused}"
        expected = self._probe_answer(_PROBES[0], more)
        for probe in _PROBES:
            try:
                prompt = self._render(probe, generate=True, more=more)
                row = self._render([*probe, ("assistant", _ANSWER)], generate=False, more=more)
            except TemplateRefused:
                continue
            if expected is None or self._probe_answer(probe, more) != expected:
                return (
                    f"this base's chat template puts {_after_question(row)!r} after a question in training, but "
                    f"{_after_question(prompt)!r} before generation ({_ANSWER} stands for the answer)"
                )
        if expected is None:
            return "this base's chat template does not render an answer"
        if not any(text in expected.after for text in self.special):
            return (
                f"this base's chat template puts {expected.after!r} after an answer, without a special token, so the "
                "model would not learn to end its turn"
            )
        return None

    def _probe_answer(self, probe: Messages, more: TemplateKwargs) -> _Answer | None:
        """Return how the template writes an answer after a conversation; None if not after the generation prompt."""
        try:
            prompt = self._render(probe, generate=True, more=more)
            row = self._render([*probe, ("assistant", _ANSWER)], generate=False, more=more)
        except TemplateRefused:
            return None
        before, answer, after = row.removeprefix(prompt).partition(_ANSWER)
        if not row.startswith(prompt) or not answer or before.strip():
            return None
        return _Answer(before, after, tail=prompt.rpartition(_QUESTION)[2])

    def _require_answer(self) -> _Answer:
        if self._answer is None:
            raise Misconfigured(
                self.training_problem() or "this base's chat template does not render an answer"
            )
        return self._answer

    # --- rendering and encoding ---

    def _render(self, messages: Messages, *, generate: bool, more: TemplateKwargs | None = None) -> str:
        turns = [
            {"role": "system" if role == "developer" else role, "content": content}
            for role, content in messages
        ]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=generate,
                    **self._arguments | dict(more or {}),
                )
            )
        except Exception as error:
            # A template is a program: on an unexpected conversation it raises whatever its expressions raise.
            raise TemplateRefused(str(error) or type(error).__name__) from error

    def _masked(self, messages: Messages) -> tuple[list[tuple[str, str]], dict[str, str]]:
        """Return the messages with placeholders instead of special tokens, and the text of each placeholder.

        In an assistant's message, tokens like `<think>` are the model's own: the template may look for them.
        """
        literal: dict[str, str] = {}
        masked = [
            (role, self._masks[role == "assistant"].apply(self._encodable(content), literal))
            for role, content in messages
        ]
        return masked, literal

    def _encodable(self, text: str) -> str:
        """Return a text without the characters that would become the tokenizer's unknown token."""
        return without_bytes(text, self._missing_bytes) if self._missing_bytes else text

    def _encode(self, text: str, literal: Mapping[str, str]) -> list[int]:
        if not literal and not self._always_literal:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        with self._lock:
            if self._literal is None:
                self._literal = LiteralTokens(self._backend, self.protected)
        return self._literal.encode(text, literal)

    def _answer_text(self, text: str) -> tuple[str, dict[str, str]]:
        """Return an answer as the template writes it, with placeholders instead of special tokens, and their texts.

        A template may remove whitespace around it. If the template takes part of the answer for something else, such as
        reasoning, or refuses it, the answer stays as it is.
        """
        answer = self._require_answer()
        literal: dict[str, str] = {}
        masked = self._masks[True].apply(self._encodable(text), literal)
        try:
            row = self._render([*_PROBES[0], ("assistant", masked)], generate=False)
            prompt = self._probe_prompt
            if not prompt or not row.startswith(prompt):  # the template may write the time of day
                self._probe_prompt = prompt = self._render(_PROBES[0], generate=True)
        except TemplateRefused:
            return masked, literal
        body = row.removeprefix(prompt + answer.before).removesuffix(answer.after)
        is_whole = row == prompt + answer.before + body + answer.after and body.strip() == masked.strip()
        return (body if is_whole else masked), literal

    def _continuation(self, text: str, literal: Mapping[str, str]) -> list[int]:
        """Return the ids of a text that follows a prompt, whose own ids stay as they are.

        If the text would merge with the end of the prompt, it is tokenized apart from it, as it is generated.
        """
        if not text:
            return []
        tail = self._require_answer().tail
        for context in (tail, str(self.tokenizer.eos_token or "")):
            before = self._context_ids(context)
            ids = self._encode(context + text, literal)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._encode(text, literal)

    def _context_ids(self, text: str) -> list[int]:
        if text not in self._ids_of_context:
            self._ids_of_context[text] = self._encode(text, {})
        return self._ids_of_context[text]


class _Mask:
    """Replaces special tokens in a message, so that neither the template nor the tokenizer sees them."""

    def __init__(self, tokens: frozenset[str]) -> None:
        self._pattern = any_of(tokens)
        self._prefixes = {text[:size] for text in tokens for size in range(1, len(text))}
        self._suffixes = {text[-size:] for text in tokens for size in range(1, len(text))}
        self._hint = any_of({text[end] for text in tokens for end in (0, -1)})
        """Every token and every piece of one contains one of these characters; most texts contain none."""
        self._longest = max(map(len, tokens), default=1)
        self._name = "q" + secrets.token_hex(12).translate(str.maketrans("0123456789", "ghijklmnop"))

    def find(self, text: str) -> str | None:
        """Return the first special token in the text, or None."""
        found = self._pattern.search(text)
        return found[0] if found else None

    def apply(self, text: str, literal: dict[str, str]) -> str:
        """Return the text with a placeholder of letters for each special token, and add the texts to `literal`.

        A piece of a special token at either end is replaced as well: with the template's text next to it, it could be a
        whole one.
        """

        def placeholder(original: str) -> str:
            number = "".join("abcdefghij"[int(digit)] for digit in f"{len(literal):05}")
            name = f"{self._name}{number}z"
            literal[name] = original
            return name

        if not self._hint.search(text):
            return text
        text = self._pattern.sub(lambda found: placeholder(found[0]), text)
        body = text.strip()
        if not body:
            return text
        start, end = text.index(body), text.index(body) + len(body)
        size = next(
            (n for n in range(min(self._longest, len(body)), 0, -1) if body[-n:] in self._prefixes), 0
        )
        if size:
            text = text[: end - size] + placeholder(body[-size:]) + text[end:]
            body = body[:-size]
        size = next((n for n in range(min(self._longest, len(body)), 0, -1) if body[:n] in self._suffixes), 0)
        if size:
            text = text[:start] + placeholder(body[:size]) + text[start + size :]
        return text


def _after_question(text: str) -> str:
    """Return the text after the probe's question, or the end of the text if the question is not in it."""
    return text.rpartition(_QUESTION)[2][-200:]
