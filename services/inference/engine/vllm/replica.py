"""One vLLM server as a replica: whether it may get requests, and that it has the adapters it must have."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog

from services.inference.engine.vllm.completions_api import (
    ServedModel,
    smoke_test_body,
    smoke_test_problem,
)
from services.inference.engine.vllm.null_adapter import runs_on_cpu
from services.inference.engine.vllm.server import ServerRefused, ServerUnreachable, VllmServer
from shared.errors import BadArtifact, LoopwrightError, Misconfigured, NotYet, Retryable

SMOKE_TEST_TOKENS = 4
WARM_UP_REQUESTS, WARM_UP_TOKENS = 4, 2
MIN_LORAS: Final = 2
"""Old and new version must fit into one batch, or a swap stalls requests."""
MIN_RELEASE: Final = (0, 32, 0)
"""Earlier releases answered running requests with another adapter after one was loaded (vLLM issue 47724). Those
between 0.24 and 0.32 have not been tried."""
RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+)")
MAX_LORA_LABEL = re.compile(r'max_lora="(\d+)"')
START_COMMAND = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {model} --enable-lora --max-loras 3 --max-lora-rank <rank>"
)
log = structlog.get_logger(__name__)


class ReplicaState(StrEnum):
    """State of a replica. Only a ready one gets requests."""

    UNREACHABLE = "unreachable"
    MISCONFIGURED = "misconfigured"
    LOADING = "loading"
    CANNOT_LOAD = "cannot_load"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class ExpectedBase:
    """What every server must serve.

    Attributes:
        names: Names of the base; a server's model name or path must be one of them, or end with one.
        smoke_prompt: Token ids of a short prompt.
        version: Its version name.
        null_adapter: Returns the folder of an adapter that changes nothing, or None if there is none for this base.

    """

    names: tuple[str, ...]
    smoke_prompt: tuple[int, ...]
    version: str
    null_adapter: Callable[[], Path | None]

    def find(self, models: list[ServedModel]) -> ServedModel | None:
        """Return the served base if it is the expected one."""
        accepted = {name for full in self.names for name in (full, full.rstrip("/").rsplit("/", 1)[-1])}
        for model in models:
            if (
                model.parent is None
                and {
                    model.name,
                    model.root,
                    model.root.rstrip("/").rsplit("/", 1)[-1],
                }
                & accepted
            ):
                return model
        return None


class Replica:
    """One server and what is known about it. Used in the engine's event loop only.

    Args:
        server: Makes the calls.
        base: What the server must serve.

    """

    def __init__(self, server: VllmServer, base: ExpectedBase) -> None:
        self.server = server
        self.url = server.url
        self.state = ReplicaState.UNREACHABLE
        self.problem = "not contacted yet"
        self.in_flight = 0
        self.base_name = ""
        """Name under which the server serves the base."""
        self.max_model_len: int | None = None
        self.loaded: dict[str, Path] = {}
        """Versions that the server listed at the last check and that passed their smoke test, with their folders."""
        self.wake = asyncio.Event()
        """Set to check the server now instead of in a moment."""
        self._base = base
        self._base_tested = False
        self._null_adapter: Path | None = None
        """On CPUs, the adapter through which the base is served."""
        self._lock = asyncio.Lock()

    def serves(self, version: str | None) -> bool:
        """Return whether a request for a version may go here. None is the base."""
        return self.state is ReplicaState.READY and (version is None or version in self.loaded)

    @property
    def base_model(self) -> str:
        """The model to name in a request for the base."""
        return self._base.version if self._null_adapter is not None else self.base_name

    def suspect(self, problem: str) -> None:
        """Take the replica out of routing until the next check, which happens at once."""
        if self.state is ReplicaState.READY:
            self._set(ReplicaState.UNREACHABLE, problem)
        self.wake.set()

    async def check(self, wanted: Mapping[str, Path]) -> None:
        """Check the server, give it the versions that it lacks, and set the state accordingly. Never raises.

        A server that was restarted has forgotten its adapters; it gets all of them before its next request.
        """
        async with self._lock:
            try:
                await self._check(wanted)
            except ServerUnreachable as error:
                self._base_tested = False
                self._set(ReplicaState.UNREACHABLE, str(error))
            except ServerRefused as error:
                self._base_tested = False
                self._set(ReplicaState.UNREACHABLE, f"the vLLM server {self.url} is not usable: {error}")
            except Misconfigured as error:
                self._set(ReplicaState.MISCONFIGURED, str(error))
            except LoopwrightError as error:
                self._set(ReplicaState.CANNOT_LOAD, str(error))

    async def _check(self, wanted: Mapping[str, Path]) -> None:
        await self.server.health()
        models = await self.server.models()
        self._read_base(models)
        listed = _folders(models)
        self.loaded = {
            version: folder for version, folder in self.loaded.items() if listed.get(version) == folder
        }
        if not self._base_tested:
            self._set(ReplicaState.LOADING, "the base is tested")
            await self._require_release()
            await self._require_runtime_loading()
            await self._smoke_test(self.base_name)
            await self._read_metrics()
            self._base_tested = True
        needed = dict(wanted)
        if self._null_adapter is not None:
            needed = {self._base.version: self._null_adapter} | needed
        lacking = {version: folder for version, folder in needed.items() if version not in self.loaded}
        for version, folder in lacking.items():
            if self.state in {ReplicaState.READY, ReplicaState.UNREACHABLE}:
                self._set(ReplicaState.LOADING, f"{version} is loaded again")
            await self._load(version, folder)
        self._set(ReplicaState.READY, "")

    async def load(self, version: str, folder: Path) -> None:
        """Load a version, see it listed, smoke-test it by its name, and warm it up.

        Raises:
            BadArtifact: if the server cannot serve the version.
            Retryable: if that may succeed later.

        """
        async with self._lock:
            try:
                await self._load(version, folder)
            except ServerUnreachable as error:
                self._set(ReplicaState.UNREACHABLE, str(error))
                raise
            except ServerRefused as error:
                raise Retryable(f"the vLLM server {self.url} is not usable: {error}") from error

    def cannot_load(self, error: LoopwrightError) -> None:
        """Take the replica out of routing because it lacks a version that others serve."""
        self._set(ReplicaState.CANNOT_LOAD, str(error))

    async def unload(self, version: str, folder: Path) -> bool:
        """Let the server forget a version. Return whether it certainly has.

        The same name with another folder belongs to someone else and stays.
        """
        async with self._lock:
            self.loaded.pop(version, None)
            try:
                if _folders(await self.server.models()).get(version) == folder:
                    await self.server.unload_adapter(version)
            except ServerRefused as error:
                return error.status == 404
            except ServerUnreachable:
                return False
            return True

    async def _load(self, version: str, folder: Path) -> None:
        """Load unless the server lists the version from this folder already; then test it in any case.

        Never in place: vLLM's prefix cache would keep what it computed with the old weights.
        """
        listed = _folders(await self.server.models())
        if listed.get(version) != folder:
            if version in listed:
                await self.server.unload_adapter(version)
            try:
                await self.server.load_adapter(version, str(folder))
            except ServerRefused as error:
                raise _load_error(self.url, version, folder, error) from error
            if _folders(await self.server.models()).get(version) != folder:
                raise Retryable(
                    f"{self.url} does not list {version} after loading it: run vLLM with --api-server-count 1, and "
                    "give every server an address of its own, without a load balancer before them"
                )
        await self._smoke_test(version)
        await self._warm_up(version)
        self.loaded[version] = folder

    async def _smoke_test(self, model: str) -> None:
        body = smoke_test_body(model, self._base.smoke_prompt, SMOKE_TEST_TOKENS)
        try:
            problem = smoke_test_problem(await self.server.complete(body))
        except ServerRefused as error:
            if error.status in {429, 503}:
                raise
            problem = str(error)
        if problem is not None:
            raise BadArtifact(f"{model} cannot answer on {self.url}: {problem}")

    async def _warm_up(self, model: str) -> None:
        """Send a few requests at once, so that no user's request pays for what is initialised lazily."""
        body = smoke_test_body(model, self._base.smoke_prompt, WARM_UP_TOKENS)
        await asyncio.gather(*(self.server.complete(body) for _ in range(WARM_UP_REQUESTS)))

    def _read_base(self, models: list[ServedModel]) -> None:
        base = self._base.find(models)
        if base is None:
            served = ", ".join(model.name for model in models if model.parent is None) or "nothing"
            name = self._base.names[0]
            raise Misconfigured(
                f"the vLLM server {self.url} serves {served}, but the base of this deployment is {name}: start it "
                f"with {START_COMMAND.format(model=name)}, or set --served-model-name {name} if it is the same model"
            )
        self.base_name, self.max_model_len = base.name, base.max_model_len

    async def _require_release(self) -> None:
        """Require a release that does not mix up versions. A version that is no release is accepted."""
        try:
            version = await self.server.version()
        except ServerRefused:
            return
        found = RELEASE.match(version)
        if found is not None and tuple(map(int, found.groups())) < MIN_RELEASE:
            raise Misconfigured(
                f"the vLLM server {self.url} is version {version}, which may answer running requests with another "
                f"version's weights while one is loaded: use {'.'.join(map(str, MIN_RELEASE))} or newer"
            )

    async def _require_runtime_loading(self) -> None:
        """Require that adapters can be loaded at run time: a request without a name is refused, but not unknown."""
        try:
            await self.server.load_adapter("", "")
        except ServerRefused as error:
            if error.status in {400, 422}:
                return
            if error.status not in {404, 405}:
                raise
        raise Misconfigured(
            f"the vLLM server {self.url} cannot load versions at run time: start it with "
            f"{START_COMMAND.format(model=self._base.names[0])}"
        )

    async def _read_metrics(self) -> None:
        """Require `--max-loras` of at least `MIN_LORAS`, and find out whether the server runs on CPUs.

        On CPUs the base needs an adapter of its own (`null_adapter.py`). Metrics may be absent.
        """
        try:
            metrics = await self.server.metrics()
        except ServerRefused:
            return
        is_cpu = runs_on_cpu(metrics)
        slots = MIN_LORAS + is_cpu
        found = MAX_LORA_LABEL.search(metrics)
        if found is not None and int(found[1]) < slots:
            raise Misconfigured(
                f"the vLLM server {self.url} runs with --max-loras {found[1]}, so requests would wait during a swap: "
                f"start it with --max-loras {slots + 1} (old version, new version, canary{', base' * is_cpu})"
            )
        self._null_adapter = await asyncio.to_thread(self._base.null_adapter) if is_cpu else None

    def _set(self, state: ReplicaState, problem: str) -> None:
        if (state, problem) != (self.state, self.problem):
            log.info("vllm_server_state", url=self.url, state=state.value, problem=problem)
        self.state, self.problem = state, problem


def _folders(models: list[ServedModel]) -> dict[str, Path]:
    """Return the loaded adapters with their folders."""
    return {model.name: Path(model.root) for model in models if model.parent is not None}


def _load_error(url: str, version: str, folder: Path, error: ServerRefused) -> LoopwrightError:
    """Return the error for a refused load: the artifact's fault, or a fault of the server that a person can mend."""
    message = str(error)
    if error.status == 404 or "No adapter found" in message:
        return NotYet(
            f"{url} cannot read {folder}: mount the folder LOOPWRIGHT_INFERENCE_ADAPTER_DIR at the same path in the "
            f"vLLM server ({message})"
        )
    if "max_lora_rank" in message:
        return NotYet(f"{url} cannot load {version}: start vLLM with a larger --max-lora-rank ({message})")
    if error.status in {401, 403, 429, 503}:
        return Retryable(f"{url} cannot load {version} now: {message}")
    return BadArtifact(f"{url} cannot load {version}: {message}")
