"""Measures what the demo's base knows: `python -m benchmarks.worlds.base_knowledge`; writes `data/base_knowledge.json`.

The base answers the first, plainest wording of each fact of `knowledge` greedily, and knows the fact if the answer key
accepts the answer. As many known as unknown facts are chosen, spread over the relations. Facts that a shipped general
prompt asks for are left out, because general accuracy is measured with those.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.worlds.world import BASE_KNOWLEDGE, Fact, candidate_facts
from deploy.local.model import ensure_base_model
from examples.world.text import contains_phrase
from services.trainer.base.base_answers import EVAL_PROMPTS, REPLAY_PROMPTS, Prompt, shipped_prompts, spread
from services.trainer.base.dtype import fastest
from services.trainer.base.tokenization import load_chat
from services.trainer.files import write_whole
from shared.adapters.base_model import find_base

NEW_TOKENS: Final = 24
"""Longest answer, as for general questions at the gate."""
CHOSEN: Final = 120
"""Most facts chosen of those that the base knows, and as many of the others."""


def is_shipped(fact: Fact, prompts: list[Prompt]) -> bool:
    """Return whether a shipped prompt asks for the fact: it names the subject and has one of the answers as its key."""
    subject = fact.id.partition(": ")[2]
    return any(
        subject.lower() in prompt.prompt.lower()
        and contains_phrase(prompt.prompt, [subject])
        and any(contains_phrase(key, [own]) for key in prompt.answer_key for own in fact.answer_key)
        for prompt in prompts
    )


def choose(measured: list[dict[str, Any]], most: int = CHOSEN) -> set[str]:
    """Return the ids of as many known as unknown facts, evenly spread over the list."""
    known = [fact["id"] for fact in measured if fact["known"]]
    unknown = [fact["id"] for fact in measured if not fact["known"]]
    count = min(most, len(known), len(unknown))
    return {*spread(known, count), *spread(unknown, count)}


def main(
    base: Annotated[str, typer.Option(help="Folder of the base model; by default the demo's.")] = "",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    output: Annotated[Path, typer.Option(help="File to write.")] = BASE_KNOWLEDGE,
) -> None:
    """Measure which facts the base knows and choose the facts of the world."""
    from services.trainer.base.model import generate_answers, load_base  # noqa: PLC0415 - importing torch is slow

    folder = Path(base or ensure_base_model(Path(".loopwright"), print))
    prompts = [prompt for name in (EVAL_PROMPTS, REPLAY_PROMPTS) for prompt in shipped_prompts(name)]
    facts = [fact for fact in candidate_facts() if not is_shipped(fact, prompts)]
    dtype = fastest(folder)
    questions = [fact.asked[0] for fact in facts]
    answers = generate_answers(
        load_base(folder, threads, dtype),
        load_chat(folder),
        questions,
        NEW_TOKENS,
        lambda done, total: print(f"{done} of {total} questions answered", flush=True),
    )
    measured: list[dict[str, Any]] = [
        {"id": fact.id, "known": fact.is_right(answer), "question": question[-1][1], "answer": answer}
        for fact, question, answer in zip(facts, questions, answers, strict=True)
    ]
    chosen = choose(measured)
    pinned = find_base(str(folder))
    content = {
        "base": pinned.name,
        "base_digest": pinned.digest,
        "dtype": dtype,
        "new_tokens": NEW_TOKENS,
        "facts": [{"id": fact["id"], "chosen": fact["id"] in chosen, **fact} for fact in measured],
    }
    write_whole(output, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
    known_count = sum(fact["known"] for fact in measured)
    print(f"The base knows {known_count} of {len(measured)} facts; {len(chosen)} are chosen.")


if __name__ == "__main__":
    typer.run(main)
