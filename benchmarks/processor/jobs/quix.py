"""The same job in quixstreams, exactly-once, otherwise with its defaults. Runs in a separate environment."""

from __future__ import annotations

from typing import Any

from quixstreams import Application
from quixstreams import State as QuixState

from benchmarks.processor.job import read_job
from benchmarks.processor.votes import vote


def main() -> None:
    """Run until SIGTERM, which quixstreams handles."""
    job = read_job()
    app = Application(
        broker_address=job.kafka,
        consumer_group=job.name,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=f"{job.folder}/state",
        loglevel="WARNING",
    )
    events = app.topic(job.input, key_deserializer="bytes", value_deserializer="json")
    counts = app.topic(job.output, key_serializer="bytes", value_serializer="json")

    def count(event: dict[str, Any], state: QuixState) -> dict[str, Any]:
        after, output = vote(state.get("vote"), event, job.remembered_events)
        state.set("vote", after)
        return output

    frame = app.dataframe(events)
    frame.apply(count, stateful=True).to_topic(counts)
    app.run()


if __name__ == "__main__":
    main()
