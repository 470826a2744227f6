"""Names, ports and environment of the services."""

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
TOKEN_KEY = "LOOPWRIGHT_FEEDBACK_TOKEN_KEY"
"""Only feedback gets this variable."""
REPOSITORY = Path(__file__).resolve().parents[2]

TORCH_TUNING = {
    # By default the allocator returns large blocks to the system after every training step. Keeping them makes
    # training on a CPU 1.5 times as fast.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    # Two torch processes share the machine with Kafka, Redis and four services.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def port_setting(service: str) -> str:
    """Return the name of the variable with a service's port."""
    return f"LOOPWRIGHT_{service.upper()}_PORT"


def preferred_port(service: str, env: Mapping[str, str]) -> int:
    """Return the port that a service should get if it is free; 0 means any port."""
    return int(env.get(port_setting(service)) or PORTS.get(service, 0))


def service_environment(
    *, root: Path, kafka: str, redis: str, base_model: str, key: str, ports: Mapping[str, int]
) -> dict[str, str]:
    """Return the environment variables that all services of the stack get."""
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "REDIS_URL": redis,
        "LOOPWRIGHT_HOST": HOST,
        "LOOPWRIGHT_BASE_MODEL": base_model,
        "LOOPWRIGHT_DATA_DIR": str(root.resolve() / "data"),
        "LOOPWRIGHT_ARTIFACTS": str(root.resolve() / "artifacts"),
        "LOOPWRIGHT_PSEUDONYM_KEY": key,
        # Fewer than the default: one machine does not grow, and each example waits less for its batch to fill.
        "LOOPWRIGHT_PARTITIONS": os.environ.get("LOOPWRIGHT_PARTITIONS", "6"),
        "PYTHONUNBUFFERED": "1",
    }
    env |= {port_setting(service): str(port) for service, port in ports.items()}
    if Path(base_model).is_dir():
        # The model is a local folder, so the Hugging Face Hub is not needed.
        env["HF_HUB_OFFLINE"] = "1"
    return env


def torch_tuning(service: str) -> dict[str, str]:
    """Return the torch and allocator settings of a service, except those in this process's environment."""
    if service not in TORCH_SERVICES:
        return {}
    return {name: setting for name, setting in TORCH_TUNING.items() if name not in os.environ}
