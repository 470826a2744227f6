"""One run, in a process of its own: `python -m services.trainer.train RUN_DIR`.

Stages, each skipped where its result is there already: snapshot.json -> adapter/ -> artifact/ -> gate.json (written
last). So a kill -9 at any moment costs at most the work since the newest checkpoint, and never a second dataset.

Ends with 0 done; 3 failed for good (`failed.txt` says why); 143 stopped by SIGTERM.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from transformers import logging as transformers_logging

from services.trainer import collect, snapshot
from services.trainer.card import write_artifact
from services.trainer.child import CONFIG, FAILED, GATE, PARENT, STOPPED, WHY, pause_at
from services.trainer.gate.items import Item, items_of
from services.trainer.gate.run import Voice, gate, listen
from services.trainer.learning import RunFailed, Stopped, learn, save_adapter
from services.trainer.model import Told, answers, load_base, load_tokenizer, token_count
from services.trainer.objectives import sft
from services.trainer.progress import Progress
from services.trainer.replay import (
    EVALUATION,
    REPLAY,
    Answered,
    Prompt,
    base_answers,
    mixed,
    shipped,
    whole_sentences,
)
from services.trainer.runs import RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.store import write_whole
from services.trainer.verify import Row
from shared.adapters.artifacts import LocalArtifactStore
from shared.adapters.children import die_with
from shared.adapters.redis import RedisCache
from shared.settings import load
from shared.telemetry import configure_logging
from shared.versions import GateReport

ADAPTER, CHECKPOINTS, ANSWERS = "adapter", "checkpoints", "gate_answers.jsonl"
log = structlog.get_logger(__name__)


@dataclass
class Work:
    """What a run works with. The tokenizer is loaded at once, the base when it is needed."""

    folder: Path
    config: RunConfig
    settings: TrainerSettings
    progress: Progress
    stop: threading.Event

    def __post_init__(self) -> None:
        self.tokenizer = load_tokenizer(Path(self.config.base))

    def told(self, stage: str) -> Told:
        """A callback that tells how far, and ends the run between two batches where that is asked."""
        count = self.progress.counting(stage)

        def tell(done: int, of: int) -> None:
            count(done, of)
            if self.stop.is_set():
                raise Stopped(f"asked to stop during {stage}")

        return tell

    def sibling(self, run_id: str) -> Path:
        return self.folder.parent / run_id

    def base_says(self, prompts: list[Prompt], new_tokens: int) -> list[Answered]:
        """The base's own answers, from the cache of its digest."""
        file = self.settings.data_dir / "replay" / f"{self.config.base_digest[:8]}.jsonl"

        def answering(missing: Sequence[Prompt], tokens: int) -> list[str]:
            base = load_base(Path(self.config.base))
            return answers(base, self.tokenizer, [p.messages for p in missing], tokens, self.told("replay"))

        return base_answers(file, prompts, new_tokens, answering)


def do(work: Work) -> None:
    """Whatever of the run is left."""
    if not snapshot.is_complete(work.folder):
        take_snapshot(work)
    pause_at("snapshot")
    if not (work.folder / ADAPTER).exists():
        train(work)
    pause_at("trained")
    if not (work.folder / GATE).exists():
        report = examine(work)
        write_artifact(work.folder, work.config, snapshot.read_ref(work.folder), report)
        write_whole(work.folder / GATE, report.model_dump_json(indent=1, exclude_none=True).encode())


def take_snapshot(work: Work) -> None:
    """Raises `RunFailed` where nothing is left after verification."""
    work.progress.tell("snapshot")
    table = (work.folder.parent.parent / "trainer.sqlite3").resolve()
    db = sqlite3.connect(f"{table.as_uri()}?mode=ro", uri=True, timeout=30.0)
    try:
        examples = collect.dataset(db, work.config.through)
    finally:
        db.close()

    def fits(row: Row) -> bool:
        return token_count(work.tokenizer, row.messages, row.answer) <= work.config.recipe.max_tokens

    known = questions_of(work.sibling(work.config.stable_run)) if work.config.stable_run else []
    taken = snapshot.take(
        work.config.line,
        examples,
        work.config.through,
        known=known,
        fits=fits,
        comments=work.config.recipe.comment_mode,
    )
    tokens = sum(token_count(work.tokenizer, one.row.messages, one.row.answer) for one in taken.train)
    ref = snapshot.write(work.folder, taken, tokens)
    log.info("snapshot_taken", examples=ref.examples, users=ref.users, tokens=tokens, digest=ref.digest[:8])
    if not taken.train:
        raise RunFailed("nothing is left to train after verification: see the reasons for which it is held")


def questions_of(folder: Path) -> list[str]:
    """What a run's snapshot asks; none where it was erased."""
    return [one.row.question for one in snapshot.read_rows(folder)] if snapshot.is_complete(folder) else []


def train(work: Work) -> None:
    """Writes the adapter. Raises `RunFailed` or `Stopped`."""
    recipe = work.config.recipe
    rows = [one.row for one in snapshot.read_rows(work.folder)]
    if not rows:
        raise RunFailed("the snapshot is empty")
    replayed = [
        (one.messages, whole_sentences(one.answer))
        for one in work.base_says(shipped(REPLAY, recipe.replay_prompts), recipe.replay_new_tokens)
        if one.answer
    ]
    sizes = [token_count(work.tokenizer, messages, answer) for messages, answer in replayed]
    chosen = mixed(snapshot.read_ref(work.folder).tokens, sizes, recipe.replay_share)
    pairs = [sft(row.messages, row.answer) for row in rows] + [sft(*replayed[i]) for i in chosen]
    log.info("training", corrections=len(rows), replay=len(chosen))
    model = learn(
        load_base(Path(work.config.base)),
        work.tokenizer,
        pairs,
        recipe,
        work.folder / CHECKPOINTS,
        progress=work.progress,
        stop=work.stop,
    )
    save_adapter(model, work.folder / ADAPTER, work.config.base_name)
    shutil.rmtree(work.folder / CHECKPOINTS, ignore_errors=True)


def examine(work: Work) -> GateReport:
    """The gate: the run's adapter against the stable version."""
    config, recipe = work.config, work.config.recipe
    stable_questions = questions_of(work.sibling(config.stable_run)) if config.stable_run else []
    items = items_of(
        snapshot.read_rows(work.folder, snapshot.HELD_OUT), questions_of(work.folder), stable_questions
    )
    prompts = shipped(EVALUATION, recipe.gate_eval_prompts)
    own = work.base_says(prompts, recipe.replay_new_tokens)
    base = load_base(Path(config.base))

    def hear(who: str) -> Voice:
        adapter = work.folder / ADAPTER if who == "candidate" else stable_adapter(work)

        def told(stage: str) -> Told:
            return work.told(f"gate, {who}: {stage}")

        return listen(base, work.tokenizer, adapter, items, prompts, own, recipe.gate_new_tokens, told)

    report = gate(
        items,
        prompts,
        hear,
        gated_against=config.stable.version,
        least_items=recipe.gate_items,
        answers_file=work.folder / ANSWERS,
    )
    log.info("gated", verdict=report.verdict, reasons=report.reasons, items=counts(items))
    return report


def counts(items: list[Item]) -> dict[str, int]:
    return {kind: sum(item.counts == kind for item in items) for kind in ("wins", "seen", "unseen")}


def stable_adapter(work: Work) -> Path | None:
    stable = work.config.stable
    if stable.kind == "base":
        return None
    return LocalArtifactStore(work.settings.artifacts).fetch(stable.uri, stable.digest)


def main() -> int:
    """Ties itself to its parent where one is named, then does the run."""
    if PARENT in os.environ:
        die_with(int(os.environ[PARENT]))
    folder = Path(sys.argv[1])
    settings = load(TrainerSettings)
    configure_logging("trainer-run", settings.log_level)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = RunConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    torch.set_num_threads(config.recipe.threads)
    progress = Progress(RedisCache(settings.redis_url), config.line, config.run_id)
    try:
        do(Work(folder, config, settings, progress, stop))
    except RunFailed as failure:
        write_whole(folder / WHY, str(failure).encode())
        return FAILED
    except Stopped as stopped:
        log.info("run_stopped", detail=str(stopped))
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
