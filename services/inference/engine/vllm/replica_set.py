"""All vLLM servers of a gateway: finds them, watches them, routes requests, loads and unloads versions everywhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import aiohttp
import structlog

from services.inference.engine.vllm.addresses import EngineUrl, ServerAddress, resolve
from services.inference.engine.vllm.replica import ExpectedBase, Replica, ReplicaState
from services.inference.engine.vllm.server import VllmServer
from shared.errors import BadArtifact, LoopwrightError, Misconfigured, NotYet, Retryable

RESOLVE_S = 5.0
POLL_S = 1.0
RETRY_S = 15.0
"""Time between two checks of a server that cannot load a version, or is misconfigured."""
ROUTE_S = 10.0
"""How long a request waits for a replica, for instance while the only one reloads its versions."""
OnStatus = Callable[[bool, str], None]
log = structlog.get_logger(__name__)


class ReplicaSet:
    """The replicas behind the URLs of the settings. Used in the engine's event loop only.

    A host name with several addresses is a replica per address; it is resolved again every few seconds, so replicas may
    come and go. A request goes to the replica with the fewest requests of this gateway that has its version.

    Args:
        session: The HTTP client.
        urls: URLs of the settings.
        base: What every server must serve.
        stall_s: How long a stream may be silent.
        on_status: Called after each change with whether any replica is ready, and the state in words.
        poll_s: Time between two checks of a server.

    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Sequence[EngineUrl],
        base: ExpectedBase,
        *,
        stall_s: float,
        on_status: OnStatus,
        poll_s: float = POLL_S,
    ) -> None:
        self.wanted: dict[str, Path] = {}
        """Versions that every replica must have, with their folders, in the order of loading."""
        self._session = session
        self._urls = urls
        self._base = base
        self._stall_s = stall_s
        self._on_status = on_status
        self._poll_s = poll_s
        self._addresses: dict[EngineUrl, list[ServerAddress]] = {}
        self._replicas: dict[ServerAddress, Replica] = {}
        self._watchers: dict[ServerAddress, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._status: tuple[bool, str] = (False, "")

    # --- finding and watching ---

    async def run(self) -> None:
        """Find and watch the replicas until cancelled."""
        try:
            while True:
                try:
                    await self._discover()
                except Exception:  # without this task, no new server would ever be found
                    log.exception("vllm_discovery_failed")
                await asyncio.sleep(min(RESOLVE_S, 5 * self._poll_s))
        finally:
            for watcher in self._watchers.values():
                watcher.cancel()

    async def wait_until_ready(self) -> None:
        """Return when a replica is ready.

        Raises:
            Misconfigured: if servers answer, but none of them can ever be used as it was started.

        """
        while not any(replica.serves(None) for replica in self._replicas.values()):
            states = {replica.state for replica in self._replicas.values()}
            if states == {ReplicaState.MISCONFIGURED}:
                raise Misconfigured("; ".join(replica.problem for replica in self._replicas.values()))
            await self._changed.wait()

    async def _discover(self) -> None:
        self._addresses |= await resolve(self._urls)
        found = {address for addresses in self._addresses.values() for address in addresses}
        for address in found - self._replicas.keys():
            replica = Replica(VllmServer(self._session, address, self._stall_s), self._base)
            self._replicas[address] = replica
            self._watchers[address] = asyncio.create_task(self._watch(replica))
        for address in self._replicas.keys() - found:
            log.info("vllm_server_gone", url=address.url)
            del self._replicas[address]
            self._watchers.pop(address).cancel()
        self._notify()

    async def _watch(self, replica: Replica) -> None:
        while True:
            replica.wake.clear()
            try:
                await replica.check(self.wanted)
            except Exception as error:
                # A watcher that ended would leave its replica in a wrong state for ever.
                log.exception("vllm_check_failed", url=replica.url)
                replica.suspect(f"{replica.url} cannot be checked: {type(error).__name__}: {error}")
                replica.wake.clear()
            self._notify()
            waits_for_person = replica.state in {ReplicaState.CANNOT_LOAD, ReplicaState.MISCONFIGURED}
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(replica.wake.wait(), RETRY_S if waits_for_person else self._poll_s)

    def _notify(self) -> None:
        """Wake up whoever waits for a change, and report the status if it is another one."""
        self._changed.set()
        self._changed = asyncio.Event()
        status = self._describe()
        if status != self._status:
            self._status = status
            self._on_status(*status)

    def _describe(self) -> tuple[bool, str]:
        replicas = self._replicas.values()
        ready = sum(replica.serves(None) for replica in replicas)
        problems = "; ".join(sorted(replica.problem for replica in replicas if replica.problem))
        if not replicas:
            hosts = ", ".join(url.host for url in self._urls)
            return False, f"no address found for {hosts}; check LOOPWRIGHT_INFERENCE_ENGINE_URLS"
        if ready == len(replicas):
            return True, ""
        return ready > 0, f"{ready} of {len(replicas)} vLLM servers are ready: {problems}"

    # --- routing ---

    @property
    def max_model_len(self) -> int | None:
        """The smallest context limit of the replicas, in tokens, as far as it is known."""
        known = [
            replica.max_model_len for replica in self._replicas.values() if replica.max_model_len is not None
        ]
        return min(known, default=None)

    async def acquire(self, version: str | None, avoid: Collection[Replica] = ()) -> Replica:
        """Return the least loaded replica for a request and count the request until `release`.

        Waits for a while if none is ready. Replicas in `avoid` are used only if there is no other.

        Args:
            version: The version, or None for the base.
            avoid: Replicas that have failed the request before.

        Raises:
            Retryable: if no replica can serve the version in time.

        """
        deadline = asyncio.get_running_loop().time() + ROUTE_S
        while True:
            ready = [replica for replica in self._replicas.values() if replica.serves(version)]
            candidates = [replica for replica in ready if replica not in avoid] or ready
            if candidates:
                replica = min(candidates, key=lambda each: each.in_flight)
                replica.in_flight += 1
                return replica
            remaining = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, remaining))
            except TimeoutError:
                log.warning("no_vllm_server", version=version, status=self._describe()[1])
                raise Retryable("no vLLM server is ready; send the request again in a moment") from None

    def release(self, replica: Replica) -> None:
        """Note the end of a request."""
        replica.in_flight -= 1

    # --- versions ---

    async def load(self, version: str, folder: Path) -> None:
        """Load a version on all ready replicas; if that fails, on none.

        If at least half of them can load it, the version is loaded, and the others get no requests until they can.
        Replicas that are not ready get it before they are.

        Raises:
            BadArtifact: if the servers cannot serve it.
            Retryable: if loading may succeed later.

        """
        replicas = [replica for replica in self._replicas.values() if replica.serves(None)]
        if not replicas:
            raise NotYet(f"{version} cannot be loaded: {self._describe()[1] or 'no vLLM server is ready'}")
        results = await asyncio.gather(
            *(replica.load(version, folder) for replica in replicas), return_exceptions=True
        )
        failed = {
            replica: error
            for replica, error in zip(replicas, results, strict=True)
            if isinstance(error, BaseException)
        }
        refused = {
            replica: error
            for replica, error in failed.items()
            if isinstance(error, LoopwrightError) and replica.state is ReplicaState.READY
        }
        loaded = len(replicas) - len(failed)
        if loaded > 0 and loaded >= len(refused):
            for replica, error in refused.items():
                log.warning("vllm_server_cannot_load", url=replica.url, version=version, error=str(error))
                replica.cannot_load(error)
            self.wanted[version] = folder
            self._notify()
            return
        await asyncio.gather(*(replica.unload(version, folder) for replica in replicas))
        raise _first_cause(failed.values())

    async def unload(self, version: str, folder: Path) -> bool:
        """Unload a version everywhere. Return whether every replica certainly has forgotten it.

        As long as no replica is known, that is uncertain.
        """
        self.wanted.pop(version, None)
        replicas = list(self._replicas.values())
        unloaded = await asyncio.gather(*(replica.unload(version, folder) for replica in replicas))
        for replica in replicas:
            if replica.state is ReplicaState.CANNOT_LOAD:
                replica.wake.set()  # perhaps it has all versions now
        return bool(replicas) and all(unloaded)


def _first_cause(errors: Collection[BaseException]) -> BaseException:
    """Return the error to report: an artifact's fault before a server's, and both before a programming error."""
    for kind in (BadArtifact, LoopwrightError):
        for error in errors:
            if isinstance(error, kind):
                return error
    return next(iter(errors))
