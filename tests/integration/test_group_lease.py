"""The lease by a consumer group, with a real Kafka: one holder, which no newcomer replaces, and a quick successor."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.adapters.group_lease import SESSION_TIMEOUT_MS
from shared.adapters.topic_admin import create_topics
from shared.kafka_connection import KafkaConnection
from tests.integration.stream_rig import until

PARTITIONS = 6
SUCCESSION_S = SESSION_TIMEOUT_MS / 1000 + 15
MEMBER = """
import sys, threading, time
from shared.adapters.group_lease import GroupLease
from shared.kafka_connection import KafkaConnection
from shared.topics import OPERATOR_COMMANDS
def taken(): print("taken", flush=True)
lease = GroupLease(KafkaConnection(sys.argv[1]), sys.argv[2], OPERATOR_COMMANDS, "test", taken)
print("joined", flush=True)
lease.wait(threading.Event())
print("held", flush=True)
sys.stdin.read()
lease.close()
"""


class Member:
    """A process that wants the lease. `said` has what it printed."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def has_said(self, word: str) -> Callable[[], bool]:
        return lambda: word in self.said

    def _read(self) -> None:
        assert self.child.stdout is not None
        self.said.extend(line.strip() for line in iter(self.child.stdout.readline, ""))


@contextmanager
def member(kafka: str, group: str) -> Iterator[Member]:
    argv = [sys.executable, "-c", MEMBER, kafka, group]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield Member(child)
        finally:
            child.send_signal(signal.SIGCONT)
            child.kill()


def test_newcomer_waits_and_follows_after_a_kill(kafka: str, fresh: str) -> None:
    create_topics(KafkaConnection(kafka), PARTITIONS)
    with member(kafka, fresh) as first:
        until(first.has_said("held"), "the first", 30)
        with member(kafka, fresh) as second, member(kafka, fresh) as third:
            until(lambda: "joined" in second.said and "joined" in third.said, "the others", 30)
            threading.Event().wait(4.0)  # rebalances of the group
            assert "held" not in second.said + third.said
            assert "taken" not in first.said
            first.child.kill()
            until(lambda: "held" in second.said + third.said, "a successor", SUCCESSION_S)
            assert not ("held" in second.said and "held" in third.said)


def test_holder_that_leaves_is_followed_at_once(kafka: str, fresh: str) -> None:
    create_topics(KafkaConnection(kafka), PARTITIONS)
    with member(kafka, fresh) as first:
        until(first.has_said("held"), "the first", 30)
        with member(kafka, fresh) as second:
            until(second.has_said("joined"), "the second", 30)
            assert first.child.stdin is not None
            first.child.stdin.close()
            until(second.has_said("held"), "the successor", 8)


def test_holder_that_was_stopped_learns_that_the_lease_is_taken(kafka: str, fresh: str) -> None:
    """As after the suspension of a virtual machine."""
    create_topics(KafkaConnection(kafka), PARTITIONS)
    with member(kafka, fresh) as first:
        until(first.has_said("held"), "the first", 30)
        with member(kafka, fresh) as second:
            until(second.has_said("joined"), "the second", 30)
            first.child.send_signal(signal.SIGSTOP)
            until(second.has_said("held"), "the successor", SUCCESSION_S)
            first.child.send_signal(signal.SIGCONT)
            until(first.has_said("taken"), "the former holder", 30)
            assert "taken" not in second.said
