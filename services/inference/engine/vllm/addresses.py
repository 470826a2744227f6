"""Addresses of vLLM servers: URLs from the settings, and the servers behind a host name with several addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from shared.errors import Misconfigured

EXAMPLE = "http://vllm:8000"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One server: `url` reaches it by its address; it was found under the name `host`, as TLS and `Host` need it."""

    url: str
    host: str
    port: int

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.url.startswith("https:")


@dataclass(frozen=True, slots=True)
class EngineUrl:
    """A URL of the setting, taken apart."""

    scheme: str
    host: str
    port: int


def parse_urls(setting: str) -> tuple[EngineUrl, ...]:
    """Return the URLs of a comma-separated list.

    Raises:
        Misconfigured: if there is none, or one has anything but scheme, host and port.

    """
    urls = []
    for text in filter(None, (part.strip() for part in setting.split(","))):
        parts = urlsplit(text)
        try:
            port = parts.port
        except ValueError:
            port = -1
        is_valid = parts.scheme in {"http", "https"} and parts.hostname and port != -1
        if not is_valid or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
            raise Misconfigured(
                f"LOOPWRIGHT_INFERENCE_ENGINE_URLS: expected URLs like {EXAMPLE}, separated by commas, without path "
                "and credentials"
            )
        urls.append(
            EngineUrl(parts.scheme, parts.hostname or "", port or (443 if parts.scheme == "https" else 80))
        )
    if not urls:
        raise Misconfigured(
            f"LOOPWRIGHT_INFERENCE_ENGINE_URLS is not set: with LOOPWRIGHT_INFERENCE_ENGINE=vllm, list the vLLM "
            f"servers, for example {EXAMPLE}"
        )
    return tuple(urls)


async def resolve(urls: Sequence[EngineUrl]) -> dict[EngineUrl, list[ServerAddress]]:
    """Return the servers behind each URL, one per address of its host.

    A URL whose host cannot be resolved now is left out. IPv6 addresses count only if there is no IPv4 address, because
    a server usually has one of each.
    """
    loop = asyncio.get_running_loop()
    found = {}
    for url in urls:
        try:
            infos = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except OSError:
            continue
        ips = sorted({str(info[4][0]) for info in infos})
        v4 = [ip for ip in ips if ipaddress.ip_address(ip.partition("%")[0]).version == 4]
        found[url] = [_address(url, ip) for ip in v4 or ips]
    return found


def _address(url: EngineUrl, ip: str) -> ServerAddress:
    netloc = f"[{ip}]" if ":" in ip else ip
    return ServerAddress(f"{url.scheme}://{netloc}:{url.port}", url.host, url.port)
