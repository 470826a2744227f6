"""Record an answer of an app's own model, and what two users said about it, directly in Kafka.

    pip install 'loopwright[kafka]'
    export KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092 LOOPWRIGHT_PSEUDONYM_KEY=...   # as the services have them
    python examples/producers/python_app.py my-app-answer-1

LOOPWRIGHT_NAMESPACE and LOOPWRIGHT_KAFKA_CONFIG (TLS, SASL) are read as by the services.
"""

from __future__ import annotations

import sys

from loopwright import NotDelivered
from loopwright.kafka import LoopPublisher

QUESTION = "Who founded Pellworth?"


def main(response_id: str) -> int:
    """Send the records; return the exit status."""
    try:
        with LoopPublisher(source="my-app") as publisher:
            publisher.record_response(
                response_id,
                [{"role": "user", "content": QUESTION}],
                "I do not know.",
                version="my-model-2026-01",
                user_id="ann",
                finish_reason="stop",
            )
            # Ids of your own make a retry harmless: the same event counts once.
            publisher.thumbs_down(response_id, "ann", event_id="ann-thumbs")
            publisher.correct(
                response_id, "bob", "Pellworth was founded by Orla Fenwick.", event_id="bob-correction"
            )
    except NotDelivered as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
