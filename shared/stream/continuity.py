"""Whether a partition may continue from what the log holds, or has to be halted until a person decides. Pure.

State and positions are written in one transaction, so they agree unless something outside changed the log: a topic was
deleted and created again, records were deleted, or a broker lost the end of a partition in a power cut. Continuing by
itself would skip records, or begin with empty state and number outputs from one again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.stream.partition import Positions


def changelog_loss(
    changelog: str, topic_id: str, low: int, logged: Positions | None, store_topic_id: str | None
) -> str | None:
    """Return why the changelog cannot rebuild the state, or None if it can.

    Args:
        changelog: Name of the topic.
        topic_id: Its id now.
        low: First offset of the partition that is still in the log.
        logged: Newest positions in the changelog.
        store_topic_id: Id of the topic that the local store is a copy of; None for an empty store.

    """
    if logged is None:
        if store_topic_id is not None and store_topic_id != topic_id:
            return f"{changelog} was deleted and created again, and is empty. The local store still has the old state"
        return f"the records in {changelog} before offset {low} were deleted" if low else None
    known = logged.topics.get(changelog)
    if known is not None and known != topic_id:
        return f"{changelog} was deleted and created again while it was in use, so it holds only part of the state"
    if low > logged.changelog_start:
        return (
            f"the records in {changelog} before offset {low} were deleted, so it holds only part of the state"
        )
    return None


def positions_loss(
    inputs: Sequence[str],
    topic_ids: Mapping[str, str],
    logged: Positions | None,
    committed: Mapping[str, int],
    used_outputs: Sequence[str],
) -> str | None:
    """Return why the positions do not fit the log, or None if the partition may continue from `logged`.

    Args:
        inputs: Names of the input topics.
        topic_ids: Ids of the topics now.
        logged: Positions of the restored state.
        committed: The group's offsets, without topics that have none.
        used_outputs: Outputs with records whose numbers must not be used again.

    """
    if logged is None:
        started = {topic: offset for topic, offset in committed.items() if offset > 0}
        if started:
            return f"the group has processed records ({_text(started)}), but the changelog holds no state"
        if used_outputs:
            return (
                f"{', '.join(used_outputs)} has records of this partition, but the changelog holds no state"
            )
        return None
    recreated = [topic for topic in inputs if logged.topics.get(topic, topic_ids[topic]) != topic_ids[topic]]
    if recreated:
        return f"{', '.join(recreated)} was deleted and created again, so the position in it means nothing"
    ahead = {topic: offset for topic, offset in committed.items() if offset > logged.offsets.get(topic, 0)}
    if ahead:
        return (
            f"the group's offsets ({_text(ahead)}) are ahead of the state ({_text(logged.offsets)}): a broker lost the "
            "end of the changelog, or the group's offsets were set by hand"
        )
    return None


def halt_message(reason: str, service: str, partition: int) -> str:
    """Return a reason with what to do."""
    return (
        f"{reason}. Nothing of this partition is processed until a person decides how to continue: see 'A partition is "
        f"halted' in docs/operations.md, and `python -m services.{service} recover --partition {partition} --help`"
    )


def _text(offsets: Mapping[str, int]) -> str:
    return ", ".join(f"{topic} {offset}" for topic, offset in sorted(offsets.items()))
