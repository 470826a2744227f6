"""A base without a chat template: training, gate and serving make the same text of a conversation; an answer ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from services.inference.engine.chat_tokenizer import PLAIN_STOP_STRINGS, ChatTokenizer
from services.trainer.base.tokenization import lengths, load_tokenizer, prompt_ids
from services.trainer.core.chat import as_chat

TURNS = [("system", "Be brief."), ("user", "Who runs it?"), ("assistant", "Ada."), ("user", "Since when?")]


def untaught(folder: Path, *, begins: bool) -> Path:
    """A tokenizer of letters, without a chat template; with a first token where `begins`."""
    letters = sorted(set("\n:.? BUSATAWbcdefghijklmnopqrstuvwxyz" + "aeiou"))
    words = Tokenizer(
        WordLevel({text: i for i, text in enumerate(["<s>", "</s>", "<unk>", *letters])}, unk_token="<unk>")
    )
    words.pre_tokenizer = Split("", "isolated")
    if begins:
        words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 512}')
    return folder


@pytest.mark.parametrize("begins", [True, False])
def test_training_and_serving_make_the_same_tokens(begins: bool, tmp_path: Path) -> None:
    folder = untaught(tmp_path, begins=begins)
    tokenizer, prompts = load_tokenizer(folder), ChatTokenizer(folder, 512)
    served = prompts.tokens(TURNS)
    assert prompt_ids(tokenizer, TURNS) == served
    assert served.count(tokenizer.bos_token_id) == (1 if begins else 0)
    text = tokenizer.decode(served)
    assert text.replace(" ", "").endswith("Assistant:")
    assert prompts.stops == PLAIN_STOP_STRINGS


def test_an_answer_that_trains_ends_with_the_end_of_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(untaught(tmp_path, begins=True))
    whole = tokenizer.apply_chat_template(as_chat([*TURNS, ("assistant", "Ten.")]), tokenize=True)[
        "input_ids"
    ]
    prompt = prompt_ids(tokenizer, TURNS)
    assert whole[: len(prompt)] == prompt, "the answer begins where serving lets it begin"
    assert whole[-1] == tokenizer.eos_token_id
    assert len(whole) - len(prompt) == lengths(tokenizer, TURNS, " Ten.")[1]


def test_a_template_of_the_model_s_own_is_used_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer, prompts = load_tokenizer(tiny_model), ChatTokenizer(tiny_model, 512)
    assert prompt_ids(tokenizer, TURNS) == prompts.tokens(TURNS)
    assert prompts.stops == ()
