"""Answers that ended because the model was stopped (a bound on tokens, a caller who left): what they say trains, an end
of the turn does not. Trained with one, they teach to stop in mid-sentence, or after as few words as the bound allowed.

`finish_reason` says it of a response (OpenAI's `length`; our `cancelled`); of the base's own answers, whether it ended
them itself. What a user wrote is whole.
"""

from __future__ import annotations

from typing import Any, Final

TRUNCATED: Final = "unended"
"""A field of a row as TRL takes it: whether the model was stopped, in its answer, or in the chosen and the other."""
_ANSWERS: Final = {"input_ids": 0, "labels": 0, "completion_ids": 0, "chosen_ids": 0, "rejected_ids": 1}
"""The columns that TRL's trainers of SFT, KTO and DPO make, and which answer of a row each ends with."""


class TruncatedAnswersMixin:
    """Before one of TRL's trainers: its dataset, and with it the likelihoods of its reference, without those ends."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *rest: Any) -> Any:
        prepared = super()._prepare_dataset(dataset, processing_class, args, *rest)  # type: ignore[misc]
        return prepared.map(
            drop_end_of_turn,
            batched=True,
            # KTO has paired each conversation with another answer of such a batch.
            batch_size=args.per_device_train_batch_size,
            fn_kwargs={"tokens": len(end_of_turn_ids(processing_class))},
        )


def drop_end_of_turn(rows: dict[str, list[Any]], tokens: int) -> dict[str, list[Any]]:
    """A batch of tokenised rows; `tokens`: of what follows an answer."""
    for column, answer in _ANSWERS.items():
        if column in rows:
            rows[column] = [
                ids[: len(ids) - tokens] if stopped[answer] else ids
                for ids, stopped in zip(rows[column], rows[TRUNCATED], strict=True)
            ]
    if "KL_completion_ids" in rows:
        rows["KL_completion_ids"] = [rows["completion_ids"][-1], *rows["completion_ids"][:-1]]
    return rows


def end_of_turn_ids(tokenizer: Any) -> list[int]:
    """The tokens that the chat template puts behind an answer."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = str(tokenizer.apply_chat_template(said, tokenize=False))
    return list(tokenizer(text[text.rindex("b") + 1 :], add_special_tokens=False)["input_ids"])
