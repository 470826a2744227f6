"""A copy of a tokenizer that parses special tokens only where the caller wants one.

`tokenizers` finds special tokens by their text, wherever it occurs. The copy knows each of them by another, random text
that no user can write. So a special token's own text is ordinary text for the copy, and everything else is tokenized as
by the original, whose ids the copy returns.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class LiteralTokens:
    """Encodes text in which the text of a special token is only text. Thread-safe.

    Args:
        backend: The tokenizer to copy. It is not changed.
        tokens: Text of the special tokens.

    """

    def __init__(self, backend: Tokenizer, tokens: Collection[str]) -> None:
        self._stand_ins = {text: f"q{secrets.token_hex(16)}q" for text in sorted(tokens)}
        self._pattern = any_of(tokens)
        fields = json.loads(backend.to_str())
        self._copy: Tokenizer = type(backend).from_str(json.dumps(_renamed(fields, self._stand_ins)))
        self._copy.encode_special_tokens = False
        ids = {token.content: id_ for id_, token in backend.get_added_tokens_decoder().items()}
        originals = {self._stand_ins.get(text, text): text for text in ids}
        self._ids = {
            id_: ids[originals[token.content]] for id_, token in self._copy.get_added_tokens_decoder().items()
        }

    def encode(self, text: str, literal: Mapping[str, str]) -> list[int]:
        """Return the ids of a text, without adding special tokens around it.

        Args:
            text: The text. Special tokens in it are parsed.
            literal: Placeholders in the text, with the text that each stands for and that is not parsed.

        """
        text = self._pattern.sub(lambda found: self._stand_ins[found[0]], text)
        for placeholder, original in literal.items():
            text = text.replace(placeholder, original)
        return [
            self._ids.get(token, token) for token in self._copy.encode(text, add_special_tokens=False).ids
        ]


def finds_other_spellings(backend: Tokenizer, tokens: Collection[str]) -> bool:
    """Return whether a text may become a special token without containing the token's own text.

    A normalizer can produce the token's text, for instance from other forms of the same letters. It counts if the token
    is searched for after it, or if the model finds the token's text in its vocabulary.
    """
    fields = json.loads(backend.to_str())
    model = fields["model"]
    if model["type"] != "BPE":
        return True
    in_model = not set(model["vocab"]).isdisjoint(tokens)
    is_normalized = any(token["normalized"] for token in fields["added_tokens"] if token["content"] in tokens)
    return _changes_text(fields["normalizer"]) and (in_model or is_normalized)


def missing_bytes(backend: Tokenizer) -> bytes:
    """Return the bytes for which a byte-level tokenizer has no token, so that it writes its unknown token for them.

    Some use a control token for that: with SmolLM2, the character U+0004 would become `<|endoftext|>`.
    """
    fields = json.loads(backend.to_str())
    model = fields["model"]
    if (
        model["type"] != "BPE"
        or model.get("unk_token") is None
        or not _is_byte_level(fields["pre_tokenizer"])
    ):
        return b""
    # GPT-2's alphabet: printable characters of Latin-1 stand for themselves, other bytes for what follows U+0100.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(0x100) if value not in set(printable)]
    symbols = {value: chr(value) for value in printable}
    symbols |= {value: chr(0x100 + number) for number, value in enumerate(others)}
    return bytes(value for value in range(0x100) if symbols[value] not in model["vocab"])


def without_bytes(text: str, missing: bytes) -> str:
    """Return a text without the characters whose UTF-8 form has one of these bytes."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data.translate(None, missing)) == len(data):
        return text
    absent = frozenset(missing)
    return "".join(one for one in text if absent.isdisjoint(one.encode("utf-8", "surrogatepass")))


def _is_byte_level(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    if pre_tokenizer is not None and pre_tokenizer["type"] == "Sequence":
        return any(map(_is_byte_level, pre_tokenizer["pretokenizers"]))
    return pre_tokenizer is not None and pre_tokenizer["type"] == "ByteLevel"


def _changes_text(normalizer: Mapping[str, Any] | None) -> bool:
    """Return whether a tokenizer's normalizer can change a text. Converters write empty sequences of normalizers."""
    if normalizer is not None and normalizer["type"] == "Sequence":
        return any(map(_changes_text, normalizer["normalizers"]))
    return normalizer is not None


def any_of(texts: Collection[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the texts, the longest first; it matches nothing for no texts."""
    return re.compile(
        "|".join(re.escape(text) for text in sorted(texts, key=lambda t: (-len(t), t))) or r"(?!)"
    )


def _renamed(fields: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a tokenizer's JSON in which some tokens have another text, among the added ones and in the model.

    In a model's vocabulary as well: a unigram model finds any text that its vocabulary has.
    """
    model = dict(fields["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): token for text, token in vocabulary.items()}
    elif vocabulary is not None:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if names.keys().isdisjoint(_texts_of(merge))]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = [
        token | {"content": names.get(token["content"], token["content"])} for token in fields["added_tokens"]
    ]
    changed = {"model": model, "added_tokens": added}
    return fields | changed | {"post_processor": None, "truncation": None, "padding": None}


def _texts_of(merge: str | list[str]) -> tuple[str, str, str]:
    """Return the two texts that a BPE merge joins, and the result."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right
