"""Print the ACLs that a deployment needs on a Kafka cluster with an authorizer.

`python -m deploy.kafka_acls --namespace prod` prints the arguments of one `kafka-acls.sh` call per line. Every service
may read all that belongs to its deployment; each may write only the topics that `shared/topics.py` allows it.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from shared.kafka_connection import NAMESPACE_PATTERN
from shared.topics import ALL_READERS, TOPICS

TOPICS_JOB = "topics"
TRANSACTIONAL = frozenset({"feedback", "processor", "trainer", "rollout"})
"""Services that write in transactions."""
PRINCIPALS = (TOPICS_JOB, *sorted(ALL_READERS), "sdk")
"""`sdk` stands for apps that write topics directly."""


@dataclass(frozen=True, slots=True)
class Acl:
    """Permission to use one resource, or all resources whose names begin with `name`."""

    principal: str
    resource: str
    """`topic`, `group` or `transactional-id`."""
    name: str
    operations: tuple[str, ...]
    prefixed: bool = False

    def arguments(self) -> str:
        """Return the arguments of `kafka-acls.sh` that grant this permission."""
        words = ["--add", "--allow-principal", f"User:{self.principal}"]
        for operation in self.operations:
            words += ["--operation", operation]
        words += [f"--{self.resource}", self.name]
        words += ["--resource-pattern-type", "prefixed"] if self.prefixed else []
        return shlex.join(words)


def acls_of(part: str, namespace: str, principal: str) -> Iterator[Acl]:
    """Yield what `part`, one of `PRINCIPALS`, needs in the deployment `namespace` under the name `principal`."""
    prefix = f"{namespace}."
    if part == TOPICS_JOB:
        operations = ("Create", "Describe", "DescribeConfigs", "AlterConfigs")
        yield Acl(principal, "topic", prefix, operations, prefixed=True)
        return
    if part != "sdk":
        yield Acl(principal, "topic", prefix, ("Read", "Describe", "DescribeConfigs"), prefixed=True)
        yield Acl(principal, "group", prefix, ("Read",), prefixed=True)
    for topic in TOPICS.values():
        if part in topic.writers:
            yield Acl(principal, "topic", prefix + topic.name, ("Write",))
    if part in TRANSACTIONAL:
        yield Acl(principal, "transactional-id", prefix, ("Write", "Describe"), prefixed=True)


def main() -> None:
    """Print the ACLs of all services, of the topics job and of apps."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.kafka_acls",
        description="Print the arguments of kafka-acls.sh that grant what a deployment needs, one call per line.",
    )
    parser.add_argument("--namespace", required=True, help="value of LOOPWRIGHT_NAMESPACE")
    parser.add_argument(
        "--principal",
        default="loopwright-{service}",
        help="names of the Kafka users; {service} is replaced (default: loopwright-{service})",
    )
    options = parser.parse_args()
    if not options.namespace or not re.match(NAMESPACE_PATTERN, options.namespace):
        parser.error(f"invalid namespace {options.namespace!r}: expected {NAMESPACE_PATTERN}")
    for part in PRINCIPALS:
        principal = options.principal.replace("{service}", part)
        sys.stdout.writelines(f"{acl.arguments()}\n" for acl in acls_of(part, options.namespace, principal))


if __name__ == "__main__":
    main()
