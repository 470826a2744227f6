"""Tests of the ACLs that a deployment needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deploy.kafka_acls import PRINCIPALS, acls_of
from shared.topics import TOPICS


@pytest.mark.parametrize("part", PRINCIPALS)
def test_a_service_may_write_its_own_topics_only(part: str) -> None:
    written = {acl.name for acl in acls_of(part, "prod", "someone") if "Write" in acl.operations}
    topics = {name.removeprefix("prod.") for name in written if name != "prod."}
    assert topics == {topic.name for topic in TOPICS.values() if part in topic.writers}


@pytest.mark.parametrize("part", PRINCIPALS)
def test_no_permission_reaches_beyond_the_namespace(part: str) -> None:
    acls = list(acls_of(part, "prod", "someone"))
    assert acls
    assert [acl for acl in acls if not acl.name.startswith("prod.")] == []
    assert [acl for acl in acls if acl.name == "prod." and not acl.prefixed] == []


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.kafka_acls", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_prints_one_call_of_kafka_acls_per_line() -> None:
    lines = run("--namespace", "prod").stdout.splitlines()
    assert (
        "--add --allow-principal User:loopwright-trainer --operation Write --topic prod.model.versions"
        in lines
    )
    assert (
        "--add --allow-principal User:loopwright-rollout --operation Read --group prod. "
        "--resource-pattern-type prefixed"
    ) in lines
    single = run("--namespace", "prod", "--principal", "loop").stdout.splitlines()
    assert all("User:loop " in line for line in single)


def test_invalid_namespace_is_refused() -> None:
    refused = run("--namespace", "Prod.")
    assert refused.returncode == 2
    assert "invalid namespace 'Prod.'" in refused.stderr
