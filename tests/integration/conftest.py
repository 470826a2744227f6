"""What the integration tests share."""

from __future__ import annotations

import pytest

from tests.integration.stream_rig import Rig


@pytest.fixture
def rig(kafka: str, fresh: str) -> Rig:
    """Topics and an engine's settings of this test's own; nothing is created yet."""
    return Rig(kafka, fresh)
