"""Truncated answers train without an end of turn.

An answer is truncated if the model was stopped, by a token limit or because the client left. Its text trains like any
other, but an end-of-turn token after it would teach the model to stop in mid-sentence.

Responses say so by their `finish_reason`, and the base's own answers by whether they ended. Users' corrections are
never truncated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TRUNCATED: Final = "truncated"
"""Column of a TRL row with the `TruncationFlags` (`dataset/objectives.py`)."""
_ANSWER_COLUMNS: Final = {
    "input_ids": 0,
    "labels": 0,
    "completion_ids": 0,
    "chosen_ids": 0,
    "rejected_ids": 1,
}
"""Columns that TRL's trainers of SFT, KTO and DPO create, with the index in `TRUNCATED` of the answer at their end."""


class TruncatedAnswersMixin:
    """Mixin for TRL's trainers that drops the end of turn of truncated answers.

    It changes the prepared dataset, from which TRL also computes the likelihoods of the reference model.
    """

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *rest: Any) -> Any:
        prepared: Dataset = super()._prepare_dataset(dataset, processing_class, args, *rest)  # type: ignore[misc]
        return prepared.map(
            drop_end_of_turn,
            batched=True,
            # KTO has paired each conversation with another answer of a batch of this size.
            batch_size=args.per_device_train_batch_size,
            fn_kwargs={"tokens": len(end_of_turn_ids(processing_class))},
        )


def drop_end_of_turn(rows: dict[str, list[Any]], tokens: int) -> dict[str, list[Any]]:
    """Drop the last `tokens` tokens, the end of turn, of truncated answers in a batch of tokenized rows."""
    for column, answer in _ANSWER_COLUMNS.items():
        if column in rows:
            rows[column] = [
                ids[: len(ids) - tokens] if truncated[answer] else ids
                for ids, truncated in zip(rows[column], rows[TRUNCATED], strict=True)
            ]
    if "KL_completion_ids" in rows:
        rows["KL_completion_ids"] = [rows["completion_ids"][-1], *rows["completion_ids"][:-1]]
    return rows


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the chat template puts after an answer."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    return list(tokenizer(text[text.rindex("b") + 1 :], add_special_tokens=False)["input_ids"])
