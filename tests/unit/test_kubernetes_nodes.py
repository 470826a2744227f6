"""The manifests of more nodes: pods that join the runs of the trainer, as a Job and as Kubeflow's TrainJob."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
import yaml

from services.trainer.core.hardware import DeviceChoice
from services.trainer.settings import TrainerSettings
from tests.unit.test_compose import environment
from tests.unit.test_kubernetes import CONTAINER as TRAINER
from tests.unit.test_kubernetes import POD as TRAINER_POD
from tests.unit.test_kubernetes import ROOT, SPEC

FOLDER = ROOT / "deploy" / "kubernetes"


def objects(name: str) -> dict[str, dict[str, Any]]:
    """Return the objects of a manifest by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((FOLDER / name).read_text())}


OBJECTS = objects("trainer-nodes.yaml")
SHARED: dict[str, str] = OBJECTS["ConfigMap"]["data"]
JOB: dict[str, Any] = OBJECTS["Job"]["spec"]
POD: dict[str, Any] = JOB["template"]["spec"]
NODE: dict[str, Any] = POD["containers"][0]
KUBEFLOW: dict[str, Any] = objects("trainer-nodes-kubeflow.yaml")["TrainJob"]
TRAIN_JOB: dict[str, Any] = KUBEFLOW["spec"]["trainer"]


def values(container: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a container; those from the ConfigMap with its values."""
    found = (
        dict(SHARED)
        if {"configMapRef": {"name": "loopwright-trainer-nodes"}} in container.get("envFrom", [])
        else {}
    )
    for entry in container["env"]:
        if "value" in entry:
            found[entry["name"]] = entry["value"]
        else:
            key = entry["valueFrom"]["configMapKeyRef"]
            assert key["name"] == OBJECTS["ConfigMap"]["metadata"]["name"]
            found[entry["name"]] = SHARED[key["key"]]
    return found


def settings_of(container: dict[str, Any], node: int) -> TrainerSettings:
    """Return the settings of the node with this number. Raises `ValueError` if they are not valid."""
    names = {
        re.sub(r"^LOOPWRIGHT_(TRAINER_)?", "", name).lower(): value
        for name, value in values(container).items()
        if name.startswith("LOOPWRIGHT_")
    }
    assert names.keys() <= TrainerSettings.model_fields.keys()
    return TrainerSettings(**names | {"node_rank": node})  # type: ignore[arg-type]


def test_job_has_a_pod_for_every_node_but_the_trainers() -> None:
    assert (JOB["completionMode"], JOB["completions"]) == ("Indexed", JOB["parallelism"])
    assert JOB["completions"] == TRAIN_JOB["numNodes"] == int(SHARED["LOOPWRIGHT_TRAINER_NNODES"]) - 1
    assert POD["restartPolicy"] == "OnFailure", "a lost node comes back"


@pytest.mark.parametrize("container", [NODE, TRAIN_JOB], ids=["Job", "TrainJob"])
def test_every_pod_has_valid_settings_and_its_own_number(container: dict[str, Any]) -> None:
    shell, option, script = container["command"]
    assert (shell, option) == ("sh", "-c")
    number = re.match(
        r"LOOPWRIGHT_TRAINER_NODE_RANK=\$\(\(JOB_COMPLETION_INDEX \+ 1\)\) exec python ", script
    )
    assert number is not None
    for index in range(JOB["completions"]):
        settings = settings_of(container, index + 1)
        assert settings.node_rank == index + 1
    with pytest.raises(ValueError, match="must be less than"):
        settings_of(container, JOB["completions"] + 1)


@pytest.mark.parametrize("container", [NODE, TRAIN_JOB], ids=["Job", "TrainJob"])
def test_pods_execute_the_join_command(container: dict[str, Any]) -> None:
    entry, module = container["command"][2].split()[-2:]
    assert entry == "/app/entrypoint.py"
    assert importlib.util.find_spec(module) is not None
    assert module == "services.trainer.worker.join"


@pytest.mark.parametrize("container", [NODE, TRAIN_JOB], ids=["Job", "TrainJob"])
def test_nodes_have_the_trainers_image_base_and_gpus(container: dict[str, Any]) -> None:
    resources = container.get("resources") or container["resourcesPerNode"]
    trainer = {entry["name"]: entry["value"] for entry in TRAINER["env"]}
    assert container["image"] == TRAINER["image"]
    assert values(container)["LOOPWRIGHT_BASE_MODEL"] == trainer["LOOPWRIGHT_BASE_MODEL"]
    gpus = {
        one["nvidia.com/gpu"]
        for one in (resources["requests"], resources["limits"], TRAINER["resources"]["limits"])
    }
    assert gpus == {SHARED["LOOPWRIGHT_TRAINER_PROCESSES"]}, "each process needs a GPU"
    assert DeviceChoice.parse(values(container)["LOOPWRIGHT_TRAINER_DEVICE"]).kind == "cuda"


def test_nodes_meet_at_a_service_that_selects_the_trainer_only() -> None:
    service = OBJECTS["Service"]
    host, _, port = SHARED["LOOPWRIGHT_TRAINER_RDZV_ENDPOINT"].rpartition(":")
    assert host == service["metadata"]["name"]
    assert [one["port"] for one in service["spec"]["ports"]] == [int(port)]
    assert service["spec"]["clusterIP"] == "None" or service["spec"]["clusterIP"] is None
    selector = service["spec"]["selector"].items()
    assert selector <= SPEC["template"]["metadata"]["labels"].items()
    assert not selector <= JOB["template"]["metadata"]["labels"].items()


def test_trainer_reads_the_same_settings() -> None:
    names = [one["configMapRef"]["name"] for one in TRAINER["envFrom"] if "configMapRef" in one]
    assert names == [OBJECTS["ConfigMap"]["metadata"]["name"]]
    assert settings_of({"env": TRAINER["env"], "envFrom": NODE["envFrom"]}, 0).world_size == 3


def test_nodes_write_to_volumes_only_and_have_no_rights() -> None:
    assert POD["securityContext"].items() <= TRAINER_POD["securityContext"].items()
    assert NODE["securityContext"] == TRAINER["securityContext"]
    assert {mount["name"] for mount in NODE["volumeMounts"]} == {one["name"] for one in POD["volumes"]}
    mounts = tuple(mount["mountPath"] for mount in NODE["volumeMounts"])
    written = environment("trainer-gpu") | values(NODE)
    for name in ("HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "HF_HUB_CACHE"):
        assert written[name].startswith(mounts), name
    assert "/dev/shm" in mounts, "NCCL"


def test_train_job_has_only_fields_of_the_api() -> None:
    assert KUBEFLOW["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert KUBEFLOW["spec"].keys() == {"runtimeRef", "trainer"}
    assert KUBEFLOW["spec"]["runtimeRef"].keys() == {"apiGroup", "kind", "name"}
    assert TRAIN_JOB.keys() <= {"image", "command", "args", "env", "numNodes", "resourcesPerNode"}
