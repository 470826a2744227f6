"""A snapshot's data card: what a run trains on, in figures. No user's text, no name of anybody, so it may outlive an
erasure of the rows that it counts, and may be shown to whoever asks what a version was made from.

`data-card.json` and `data-card.md` say the same. They are written before the snapshot's mark, so that a snapshot that
is complete has them; the share of replay is added when training begins, for only then it is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict

from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import GroupedRow, count_reasons
from services.trainer.dataset.similarity import normalised
from services.trainer.dataset.snapshot import Snapshot
from services.trainer.files import write_whole
from services.trainer.run.run_table import RunConfig

DATA_CARD, DATA_CARD_PAGE = "data-card.json", "data-card.md"
SAME_USER_AGAIN = "duplicate: "


class CardPart(BaseModel):
    """A piece of the card."""

    model_config = ConfigDict(frozen=True)


class RowStats(CardPart):
    """What trains, or what measures."""

    rows: int
    users: int
    kinds: dict[str, int]
    imported: int
    questions: int
    """Distinct wordings."""
    groups: int
    """Questions that mean the same are one."""
    largest_user_share: float
    objectives: dict[str, int] = {}
    """How many rows by which loss; those of KTO by their label. Empty where an older release wrote the card."""
    unended: int = 0
    """Rows in whose answer the model was stopped (`truncated_answers.py`); of a pair, in the better one."""


class Quantiles(CardPart):
    """Of lengths in tokens; a measured value each, none in between."""

    p10: int = 0
    p50: int = 0
    p90: int = 0
    p99: int = 0
    longest: int = 0


class Tokens(CardPart):
    """Of the rows that train, each once. `prompt` is the conversation up to the answer."""

    all: int
    prompt: Quantiles
    answer: Quantiles


class Duplicates(CardPart):
    """`same_user`: held, for one user says one thing once. `between_users`: rows that train though another user's says
    the same to the same question; they are agreement."""

    same_user: int
    between_users: int


class Replay(CardPart):
    """The base's own answers among what trains. `share` is of all trained tokens, over all epochs; None until training
    begins."""

    least_share: float
    rows: int | None = None
    share: float | None = None


class DataCard(CardPart):
    """Figures alone."""

    line: str
    run_id: str
    began_at: AwareDatetime
    digest: str
    through: dict[str, int]
    """Partition -> highest batch number read."""
    examples: int
    """Responses with feedback that stands, within `through`."""
    signals: dict[str, int]
    """Kind -> how many, whether they train or not."""
    training: RowStats
    measuring: RowStats
    tokens: Tokens
    duplicates: Duplicates
    replay: Replay
    held: dict[str, int]
    """Reason -> how many."""


def build_card(
    config: RunConfig, taken: Snapshot, examples: Iterable[Example], lengths: Sequence[tuple[int, int]]
) -> DataCard:
    """`lengths`: tokens of prompt and of answer, of each row that trains."""
    read = list(examples)
    said = Counter((normalised(one.row.question), normalised(one.row.answer)) for one in taken.train)
    held = count_reasons(taken.held)
    return DataCard(
        line=config.line,
        run_id=config.run_id,
        began_at=config.created_at,
        digest=taken.digest(),
        through=dict(taken.through),
        examples=len(read),
        signals=dict(sorted(Counter(signal.kind for one in read for signal in one.revision.signals).items())),
        training=_side(taken.train),
        measuring=_side(taken.measure),
        tokens=Tokens(
            all=sum(map(sum, lengths)),
            prompt=quantiles([prompt for prompt, _ in lengths]),
            answer=quantiles([answer for _, answer in lengths]),
        ),
        duplicates=Duplicates(
            same_user=sum(count for reason, count in held.items() if reason.startswith(SAME_USER_AGAIN)),
            between_users=len(taken.train) - len(said),
        ),
        replay=Replay(least_share=config.recipe.replay_share),
        held=held,
    )


def _side(rows: Sequence[GroupedRow]) -> RowStats:
    per_user = Counter(one.row.user_id for one in rows)
    return RowStats(
        rows=len(rows),
        users=len(per_user),
        kinds=dict(sorted(Counter(one.row.kind for one in rows).items())),
        imported=sum(one.row.imported for one in rows),
        questions=len({normalised(one.row.question) for one in rows}),
        groups=len({one.group for one in rows}),
        largest_user_share=round(max(per_user.values(), default=0) / max(1, len(rows)), 4),
        objectives=dict(sorted(Counter(map(_objective, rows)).items())),
        unended=sum(one.row.unended for one in rows),
    )


def _objective(one: GroupedRow) -> str:
    if one.row.objective != "kto":
        return one.row.objective
    return "kto liked" if one.row.label else "kto disliked"


def quantiles(lengths: Sequence[int]) -> Quantiles:
    """All 0 where there is nothing."""
    if not lengths:
        return Quantiles()
    found = np.quantile(lengths, [0.1, 0.5, 0.9, 0.99, 1.0], method="inverted_cdf")
    p10, p50, p90, p99, longest = (int(value) for value in found)
    return Quantiles(p10=p10, p50=p50, p90=p90, p99=p99, longest=longest)


def write(folder: Path, card: DataCard) -> None:
    """Both files; the page first, so that where there is the one there is the other."""
    write_whole(folder / DATA_CARD_PAGE, render_page(card).encode())
    write_whole(folder / DATA_CARD, (card.model_dump_json(indent=1) + "\n").encode())


def read(folder: Path) -> DataCard | None:
    """None for a snapshot of an older release."""
    file = folder / DATA_CARD
    return DataCard.model_validate_json(file.read_bytes()) if file.exists() else None


def record_replay(folder: Path, rows: int, tokens: int, others: int) -> None:
    """What training begins with: so many rows of replay, their tokens, and those of all other rows in all epochs."""
    card = read(folder)
    if card is not None:
        share = round(tokens / max(1, tokens + others), 4)
        replay = card.replay.model_copy(update={"rows": rows, "share": share})
        write(folder, card.model_copy(update={"replay": replay}))


def render_page(card: DataCard) -> str:
    """The same figures for people."""
    replay = card.replay
    replayed = (
        f"at least {replay.least_share:.1%} of the trained tokens"
        if replay.share is None
        else f"{replay.share:.1%} of the trained tokens, {replay.rows} rows"
    )
    return f"""# What a run of {card.line} trains on

Figures of the snapshot `{card.digest[:8]}`, run `{card.run_id}` of {card.began_at:%Y-%m-%d %H:%M} UTC.

Read: {card.examples} examples (signals: {_listed(card.signals)}); \
batches (partition: highest number) {_listed(card.through, ": ")}.

| | trains | measures |
| --- | --- | --- |
{_compared(card.training, card.measuring)}

| tokens | p10 | p50 | p90 | p99 | longest |
| --- | --- | --- | --- | --- | --- |
{_lengths("conversation", card.tokens.prompt)}
{_lengths("answer", card.tokens.answer)}

{card.tokens.all} tokens in all, each row once. Replay of the base's own answers: {replayed}.

Duplicates: {card.duplicates.same_user} of one user held, {card.duplicates.between_users} of several users train.

## Held: {sum(card.held.values())}

| reason | signals |
| --- | --- |
{chr(10).join(f"| {reason} | {count} |" for reason, count in card.held.items()) or "| none | 0 |"}
"""


def _compared(one: RowStats, other: RowStats) -> str:
    rows = [
        ("rows", one.rows, other.rows),
        ("users", one.users, other.users),
        ("kinds", _listed(one.kinds), _listed(other.kinds)),
        ("objectives", _listed(one.objectives), _listed(other.objectives)),
        ("answers in which the model was stopped", one.unended, other.unended),
        ("imported", one.imported, other.imported),
        ("wordings of questions", one.questions, other.questions),
        ("questions by meaning", one.groups, other.groups),
        ("largest share of one user", f"{one.largest_user_share:.1%}", f"{other.largest_user_share:.1%}"),
    ]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _lengths(name: str, found: Quantiles) -> str:
    return f"| {name} | {found.p10} | {found.p50} | {found.p90} | {found.p99} | {found.longest} |"


def _listed(counts: dict[str, int], between: str = " ") -> str:
    """`correction 3, thumbs 2`, or `0: 7, 1: 5`."""
    return ", ".join(f"{name}{between}{count}" for name, count in counts.items()) or "none"
