"""Upper limit for one Python process: consume and produce, without parsing, state or transactions."""

from __future__ import annotations

import signal
import threading

from confluent_kafka import Consumer, Producer

from benchmarks.processor.job import read_job

BATCH, CALL_S = 4_000, 0.02


def main() -> None:
    """Copy the input to the output until SIGTERM."""
    job, stop = read_job(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    common = {"bootstrap.servers": job.kafka, "log_level": 2}
    producer = Producer(
        common
        | {
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 5,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 65_536,
        }
    )
    consumer = Consumer(
        common
        | {
            "group.id": job.name,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "queued.max.messages.kbytes": 16_384,
            "fetch.wait.max.ms": 50,
        }
    )
    consumer.subscribe([job.input])
    while not stop.is_set():
        for message in consumer.consume(BATCH, CALL_S):
            partition = message.partition()
            if message.error() is None and partition is not None:
                while True:
                    try:
                        producer.produce(job.output, message.value(), message.key(), partition)
                    except BufferError:
                        producer.poll(0.01)
                    else:
                        break
        producer.poll(0)
    producer.flush(10)
    consumer.close()


if __name__ == "__main__":
    main()
