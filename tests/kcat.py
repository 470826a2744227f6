"""Stand-in for kcat's producer mode where kcat is not installed: the same options, on the same library (librdkafka).

It supports only the options that `examples/producers/kcat_app.sh` uses, and fails on any other.
"""

from __future__ import annotations

import argparse
import sys

from confluent_kafka import KafkaError, Message, Producer


def main(arguments: list[str]) -> int:
    """Produce each line of stdin as one record, as kcat does; return the exit status."""
    parser = argparse.ArgumentParser(prog="kcat", allow_abbrev=False, add_help=False)
    parser.add_argument("-P", action="store_true", required=True)
    parser.add_argument("-b", dest="servers", required=True)
    parser.add_argument("-t", dest="topic", required=True)
    parser.add_argument("-k", dest="key")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-X", dest="properties", action="append", default=[])
    options = parser.parse_args(arguments)
    # kcat sets a topic's properties under "topic.", which confluent-kafka takes without the prefix.
    properties = dict(pair.removeprefix("topic.").split("=", 1) for pair in options.properties)
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer({"bootstrap.servers": options.servers} | properties)
    headers = [(name, value.encode()) for name, value in (pair.split("=", 1) for pair in options.headers)]
    for line in sys.stdin.buffer.read().split(b"\n"):
        if line:
            producer.produce(options.topic, line, options.key, headers=headers, on_delivery=delivered)
    unsent = producer.flush(20)
    return 1 if failures or unsent else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
