"""Host and Origin: what is a name of the service, and which pages are its own."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.request_origin import (
    Authority,
    BadHost,
    is_in,
    is_known_host,
    is_loopback,
    is_same_origin,
    parse_authority,
    parse_origin,
)

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
ADDRESSES = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.ip_addresses(v=6).map(lambda address: f"[{address.exploded.upper()}]"),
)
HOSTS = st.one_of(NAMES, ADDRESSES)
PORTS = st.one_of(st.none(), st.integers(1, 65_535))
SCHEMES = st.sampled_from(["http", "https"])
DEFAULT = {"http": 80, "https": 443}


def written(draw: st.DrawFn, host: str, port: int | None) -> str:
    """Return a spelling of a host and port that means the same."""
    if draw(st.booleans()):
        host = host.upper()
    if not host.startswith("[") and not host[-1].isdigit() and draw(st.booleans()):
        host += "."
    return host if port is None else f"{host}:{port}"


@given(st.data(), HOSTS, PORTS)
def test_spellings_of_a_host_mean_the_same(data: st.DataObject, host: str, port: int | None) -> None:
    spelling = data.draw(st.composite(lambda draw: written(draw, host, port))())
    assert parse_authority(spelling) == parse_authority(host if port is None else f"{host}:{port}")


@given(st.data(), HOSTS, PORTS, SCHEMES)
def test_own_page_is_recognised_in_every_spelling(
    data: st.DataObject, host: str, port: int | None, scheme: str
) -> None:
    """A browser omits the default port in both headers; proxies and clients may write it in either."""
    spell = st.composite(lambda draw, shown: written(draw, host, shown))
    visible = None if port == DEFAULT[scheme] else port
    host_port = data.draw(st.sampled_from([visible, port or DEFAULT[scheme]]))
    origin_port = data.draw(st.sampled_from([visible, port or DEFAULT[scheme]]))
    origin = parse_origin(
        f"{data.draw(st.sampled_from([scheme, scheme.upper()]))}://{data.draw(spell(origin_port))}"
    )
    assert origin is not None
    authority = parse_authority(data.draw(spell(host_port)))
    assert is_same_origin(origin, authority, data.draw(st.sampled_from([None, scheme])))


@given(HOSTS, HOSTS, PORTS, SCHEMES, st.sampled_from([None, "http", "https"]))
def test_page_of_another_host_is_foreign(
    host: str, other: str, port: int | None, scheme: str, known: str | None
) -> None:
    one, two = parse_authority(host), parse_origin(f"{scheme}://{other}")
    assert two is not None
    if one.name != two.name:
        assert not is_same_origin(two, Authority(one.name, port), known)


@given(HOSTS, st.integers(1, 65_535), st.integers(1, 65_535), SCHEMES)
def test_page_of_another_port_is_foreign(host: str, port: int, other: int, scheme: str) -> None:
    origin = parse_origin(f"{scheme}://{host}:{other}")
    assert origin is not None
    authority = parse_authority(f"{host}:{port}")
    assert is_same_origin(origin, authority, None) == (port == other)
    assert is_same_origin(origin, authority, "http") == (port == other and scheme == "http")


@given(st.text(max_size=40))
def test_any_text_is_a_host_or_bad(text: str) -> None:
    try:
        name, port = parse_authority(text)
    except BadHost:
        return
    assert name == name.lower() and not name.endswith(".")
    assert port is None or 0 < port < 65_536
    parse_origin(f"http://{text}")


@given(st.text(max_size=40))
def test_any_text_is_an_origin_or_foreign(text: str) -> None:
    origin = parse_origin(text)
    assert origin is None or origin.scheme in DEFAULT


@pytest.mark.parametrize(
    "text",
    ["", "[", "]", "[::1", "[]", "[:::]", "a b", "a/b", "a@b", "a:b", "a:99999", "a:-1", "a:0", ".", "a..b", ".a",
     "a,b", "\x00", "ä", "a#b", "a?b", "a\\b", "[::1]x", "::1", "%41"],
)  # fmt: skip
def test_malformed_host_is_bad(text: str) -> None:
    with pytest.raises(BadHost):
        parse_authority(text)


@pytest.mark.parametrize(
    "text", ["null", "", "x", "file://", "ftp://x", "http:/x", "http://x/", "http://u@x"]
)
def test_what_is_no_origin_of_a_page_is_foreign(text: str) -> None:
    assert parse_origin(text) is None


@given(NAMES)
def test_only_localhost_addresses_and_configured_names_are_known(name: str) -> None:
    is_ip = name.replace(".", "").isdigit() and name.count(".") == 3
    if name != "localhost" and not is_ip:
        assert not is_known_host(name, ())
    assert is_known_host(name, {name})
    assert not is_known_host(f"127.0.0.1.{name}x", {name})


@given(st.ip_addresses())
def test_every_address_is_known_and_loopback_is_recognised(address: ipaddress.IPv4Address) -> None:
    assert is_known_host(str(address), ())
    assert is_loopback(str(address)) == address.is_loopback


def test_proxies_are_recognised_by_network() -> None:
    networks = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
    assert [is_in(peer, networks) for peer in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "11.0.0.1", "x", None)] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
