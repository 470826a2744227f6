"""Who sees the canary."""

from __future__ import annotations

from services.inference.core.canary_routing import choose_version, user_point
from tests.inference_factories import reference, rollout

STABLE, CANARY = reference("assistant", 1), reference("assistant", 2)
USERS = [f"u_{number:032x}" for number in range(4000)]


def saw_canary(share: float) -> set[str]:
    record = rollout(1, STABLE, canary=CANARY, share=share)
    return {user for user in USERS if choose_version(record, user) == CANARY}


def test_without_a_canary_everybody_gets_the_stable() -> None:
    assert {choose_version(rollout(1, STABLE), user).version for user in USERS[:50]} == {STABLE.version}


def test_a_share_of_the_users_gets_the_canary() -> None:
    assert 0.03 < len(saw_canary(0.05)) / len(USERS) < 0.07
    assert not saw_canary(0.0)
    assert saw_canary(1.0) == set(USERS)


def test_who_saw_the_canary_still_sees_it_when_the_share_grows() -> None:
    assert saw_canary(0.05) < saw_canary(0.25)


def test_requests_without_a_user_get_the_stable() -> None:
    assert choose_version(rollout(1, STABLE, canary=CANARY, share=1.0), None) == STABLE


def test_another_canary_draws_other_users() -> None:
    first = {user for user in USERS if user_point(user, "assistant", "assistant@v2-aaaaaaaa") < 0.05}
    second = {user for user in USERS if user_point(user, "assistant", "assistant@v3-bbbbbbbb") < 0.05}
    assert len(first & second) < len(first) / 4


def test_the_point_of_a_user_is_fixed() -> None:
    assert user_point("u_1", "assistant", "assistant@v2-aaaaaaaa") == 0.20326269383673545
