"""The services of a stack: their names, ports and environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from deploy.local.ports import HOST

PORTS = {
    "inference": 8000,
    "feedback": 8001,
    "processor": 8002,
    "rollout": 8003,
    "trainer": 8004,
    "console": 8080,
}
SERVICES = tuple(PORTS)
TORCH_SERVICES = frozenset({"inference", "trainer"})
ERASURE_TOKEN = "LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN"
"""Told to feedback alone."""
REPOSITORY = Path(__file__).resolve().parents[2]

TORCH_TUNING = {
    # torch returns large blocks to the system after every step and faults them in again; keeping them makes
    # training on a CPU half as fast again.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    # Two torch processes share the machine with Kafka and four services.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def port_setting(service: str) -> str:
    """The variable that names a service's port."""
    return f"LOOPWRIGHT_{service.upper()}_PORT"


def wanted_port(service: str, env: Mapping[str, str]) -> int:
    """The port a service should get if it is free; 0 for any."""
    return int(env.get(port_setting(service)) or PORTS.get(service, 0))


def service_environment(
    *, root: Path, kafka: str, redis: str, base_model: str, key: str, ports: Mapping[str, int]
) -> dict[str, str]:
    """What every service of the stack is told."""
    told = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "REDIS_URL": redis,
        "LOOPWRIGHT_HOST": HOST,
        "LOOPWRIGHT_BASE_MODEL": base_model,
        "LOOPWRIGHT_DATA_DIR": str(root.resolve() / "data"),
        "LOOPWRIGHT_ARTIFACTS": str(root.resolve() / "artifacts"),
        "LOOPWRIGHT_PSEUDONYM_KEY": key,
        "PYTHONUNBUFFERED": "1",
    }
    told |= {port_setting(service): str(port) for service, port in ports.items()}
    if Path(base_model).is_dir():
        # The model is a folder: nothing may be looked up on a hub.
        told["HF_HUB_OFFLINE"] = "1"
    return told


def torch_tuning(service: str) -> dict[str, str]:
    """Settings of torch and the allocator, where the service uses them and nobody has set them."""
    if service not in TORCH_SERVICES:
        return {}
    return {name: setting for name, setting in TORCH_TUNING.items() if name not in os.environ}
