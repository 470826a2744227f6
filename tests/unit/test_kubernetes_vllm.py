"""The manifest of vLLM and its gateway on Kubernetes: who finds, reaches and reads what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.inference.engine.vllm.addresses import parse_urls
from services.inference.engine.vllm.replica import MIN_LORAS, MIN_RELEASE
from services.inference.settings import InferenceSettings
from services.trainer.settings import TrainerSettings
from shared.settings import variable_of

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "deploy/kubernetes/vllm.yaml").read_text()
OBJECTS: dict[tuple[str, str], dict[str, Any]] = {
    (one["kind"], one["metadata"]["name"].removeprefix("loopwright-")): one
    for one in yaml.safe_load_all(TEXT)
}


def pod(name: str) -> dict[str, Any]:
    template: dict[str, Any] = OBJECTS["Deployment", name]["spec"]["template"]
    return template


def container(name: str) -> dict[str, Any]:
    (one,) = pod(name)["spec"]["containers"]
    return dict(one)


def variables(name: str) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(name)["env"]}


def volume_claims(name: str) -> dict[str, tuple[str, bool]]:
    """Return the mounts of volume claims: path -> (claim, whether it is read-only)."""
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod(name)["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    return {
        mount["mountPath"]: (claims[mount["name"]], mount.get("readOnly", False))
        for mount in container(name)["volumeMounts"]
        if mount["name"] in claims
    }


@pytest.mark.parametrize("name", ["vllm", "inference"])
def test_selectors_find_their_pods(name: str) -> None:
    labels = pod(name)["metadata"]["labels"]
    assert OBJECTS["Deployment", name]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert OBJECTS["Service", name]["spec"]["selector"].items() <= labels.items()


def test_gateway_finds_every_pod_of_vllm() -> None:
    (url,) = parse_urls(variables("inference")["LOOPWRIGHT_INFERENCE_ENGINE_URLS"])
    service = OBJECTS["Service", "vllm"]
    assert url.host == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None", "an address per pod, without a load balancer"
    assert url.port == service["spec"]["ports"][0]["port"] == container("vllm")["ports"][0]["containerPort"]


def test_only_the_gateway_reaches_vllm() -> None:
    policy = OBJECTS["NetworkPolicy", "vllm"]["spec"]
    assert policy["podSelector"]["matchLabels"] == pod("vllm")["metadata"]["labels"]
    ((source,),) = [rule["from"] for rule in policy["ingress"]]
    assert source == {"podSelector": {"matchLabels": pod("inference")["metadata"]["labels"]}}


def test_versions_have_the_same_path_and_only_the_gateway_writes_them() -> None:
    folder = variables("inference")["LOOPWRIGHT_INFERENCE_ADAPTER_DIR"]
    assert volume_claims("inference")[folder] == ("loopwright-adapters", False)
    assert volume_claims("vllm") == {folder: ("loopwright-adapters", True)}
    claim = OBJECTS["PersistentVolumeClaim", "adapters"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_vllm_serves_the_gateways_base_as_the_engine_demands() -> None:
    vllm = container("vllm")
    base, *arguments = vllm["args"]
    values = dict(argument.partition("=")[::2] for argument in arguments)
    assert base == variables("inference")["LOOPWRIGHT_BASE_MODEL"]
    assert "--enable-lora" in values
    assert int(values["--max-loras"]) >= MIN_LORAS
    assert int(values["--max-lora-rank"]) == TrainerSettings.model_fields["rank"].default
    assert tuple(map(int, vllm["image"].split(":v")[1].split("."))) >= MIN_RELEASE
    assert variables("vllm")["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    limits = vllm["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == vllm["resources"]["requests"]["nvidia.com/gpu"]


def test_variables_are_settings_of_inference() -> None:
    known = {variable_of(InferenceSettings, name) for name in InferenceSettings.model_fields}
    ours = {name for name in variables("inference") if name.startswith("LOOPWRIGHT_")}
    assert ours <= known


@pytest.mark.parametrize("name", ["vllm", "inference"])
def test_containers_have_no_privileges_and_are_probed(name: str) -> None:
    assert container(name)["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container(name)["securityContext"]["allowPrivilegeEscalation"] is False
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container(name).keys()


def test_manifest_contains_no_secret() -> None:
    assert re.findall(r"(?i)name: \w*(?:key|secret|token|password)\w*, value", TEXT) == [
        "name: LOOPWRIGHT_API_KEYS, value"
    ]
    assert "value: /etc/loopwright/keys/keys.json" in TEXT, "a path"
