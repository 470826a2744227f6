"""Assignment of users to the canary."""

from __future__ import annotations

from services.inference.core.canary_routing import choose_version
from shared.canary_assignment import user_point
from tests.inference_factories import rollout_record, version_ref

STABLE, CANARY = version_ref("assistant", 1), version_ref("assistant", 2)
USERS = [f"u_{number:032x}" for number in range(4000)]


def canary_users(share: float) -> set[str]:
    record = rollout_record(1, STABLE, canary=CANARY, share=share)
    return {user for user in USERS if choose_version(record, user) == CANARY}


def test_without_a_canary_every_user_gets_the_stable_version() -> None:
    record = rollout_record(1, STABLE)
    assert {choose_version(record, user).version for user in USERS[:50]} == {STABLE.version}


def test_canary_is_served_to_its_share_of_users() -> None:
    assert 0.03 < len(canary_users(0.05)) / len(USERS) < 0.07
    assert not canary_users(0.0)
    assert canary_users(1.0) == set(USERS)


def test_canary_users_stay_when_the_share_grows() -> None:
    assert canary_users(0.05) < canary_users(0.25)


def test_requests_without_a_user_get_the_stable_version() -> None:
    assert choose_version(rollout_record(1, STABLE, canary=CANARY, share=1.0), None) == STABLE


def test_another_canary_samples_other_users() -> None:
    first = {user for user in USERS if user_point(user, "assistant", "assistant@v2-aaaaaaaa") < 0.05}
    second = {user for user in USERS if user_point(user, "assistant", "assistant@v3-bbbbbbbb") < 0.05}
    assert len(first & second) < len(first) / 4


def test_point_of_a_user_never_changes() -> None:
    assert user_point("u_1", "assistant", "assistant@v2-aaaaaaaa") == 0.20326269383673545
