"""The manifest of the trainer on Kubernetes: one pod with a GPU, its rights, probes and writable folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local.services import PORTS
from services.trainer.core.hardware import DeviceChoice
from services.trainer.settings import TrainerSettings
from tests.unit.test_compose import CONTAINERS, environment

ROOT = Path(__file__).resolve().parents[2]
OBJECTS: dict[str, dict[str, Any]] = {
    one["kind"]: one for one in yaml.safe_load_all((ROOT / "deploy/kubernetes/trainer.yaml").read_text())
}
SPEC: dict[str, Any] = OBJECTS["Deployment"]["spec"]
POD: dict[str, Any] = SPEC["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]


def test_one_pod_at_a_time_has_the_gpu_and_the_volume() -> None:
    assert (SPEC["replicas"], SPEC["strategy"]["type"], len(POD["containers"])) == (1, "Recreate", 1)
    assert SPEC["selector"]["matchLabels"].items() <= SPEC["template"]["metadata"]["labels"].items()
    claim = OBJECTS["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_pod_gets_the_gpu_that_the_setting_asks_for() -> None:
    resources = CONTAINER["resources"]
    gpus = int(resources["limits"]["nvidia.com/gpu"])
    assert gpus == int(resources["requests"]["nvidia.com/gpu"]), "Kubernetes requires both to be equal"
    variables = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    choice = DeviceChoice.parse(variables["LOOPWRIGHT_TRAINER_DEVICE"])
    assert choice.kind == "cuda"
    assert max(choice.indices, default=0) < gpus


def test_every_folder_that_the_image_writes_is_a_volume() -> None:
    mounts = [Path(mount["mountPath"]) for mount in CONTAINER["volumeMounts"]]
    variables = environment("trainer-gpu") | {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    written = (
        "HOME",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "LOOPWRIGHT_DATA_DIR",
        "HF_HOME",
        "HF_HUB_CACHE",
    )
    outside = [
        name for name in written if not any(Path(variables[name]).is_relative_to(mount) for mount in mounts)
    ]
    assert outside == []
    assert Path("/tmp") in mounts
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {
        volume["name"] for volume in POD["volumes"]
    }


def test_pod_runs_with_the_images_user_and_no_privileges() -> None:
    user = POD["securityContext"]
    assert (user["runAsUser"], user["runAsGroup"], user["fsGroup"]) == (10001, 10001, 10001)
    assert user["runAsNonRoot"] is True
    rights = CONTAINER["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert POD["automountServiceAccountToken"] is False


def test_pod_is_probed_on_the_trainers_port_and_stops_as_with_compose() -> None:
    port = PORTS["trainer"]
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": port}]
    probes = {
        name: CONTAINER[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert {probe["path"] for probe in probes.values()} == {"/livez", "/readyz"}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert probes["livenessProbe"]["path"] == "/livez", (
        "a trainer that waits for Kafka or a GPU is not restarted"
    )
    grace = CONTAINERS["trainer"]["stop_grace_period"]
    assert POD["terminationGracePeriodSeconds"] == int(grace.removesuffix("s"))


@pytest.mark.parametrize("name", [entry["name"] for entry in CONTAINER["env"]])
def test_variables_are_settings_of_the_trainer(name: str) -> None:
    if name.startswith("HF_"):
        return
    field = re.sub(r"^LOOPWRIGHT_(TRAINER_)?", "", name).lower()
    assert field in TrainerSettings.model_fields


def test_manifest_contains_no_secret() -> None:
    assert CONTAINER["envFrom"] == [
        {"secretRef": {"name": "loopwright-trainer"}},
        {"configMapRef": {"name": "loopwright-trainer-nodes", "optional": True}},
    ]
    assert [
        entry["name"]
        for entry in CONTAINER["env"]
        if re.search("KEY|TOKEN|PASSWORD|SECRET", entry["name"])
        and not entry["value"].startswith("/etc/loopwright/keys/")
    ] == []
