"""Who sends a request, and when a gateway may serve whoever comes."""

import ipaddress

import pytest

from pipeline.config import GatewaySettings
from pipeline.gateway.http.identity import needs_keys, source_ip

PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
PROXY = "10.0.0.1"


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["1.1.1.1"], "203.0.113.7"),
        (PROXY, [], PROXY),
        (PROXY, ["203.0.113.7"], "203.0.113.7"),
        (PROXY, ["6.6.6.6, 203.0.113.7"], "203.0.113.7"),
        (PROXY, ["203.0.113.7, 10.0.0.9"], "203.0.113.7"),
        (PROXY, ["203.0.113.7", "10.0.0.9", "10.0.0.8"], "203.0.113.7"),
        (PROXY, ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (PROXY, ["203.0.113.7:51234"], "203.0.113.7"),
        (PROXY, ["[2001:db8::1]:443"], "2001:db8::1"),
        (PROXY, ['"[2001:db8::1]"'], "2001:db8::1"),
        (PROXY, ["2001:db8::1"], "2001:db8::1"),
        (PROXY, ["fe80::1%eth0"], "fe80::1"),
        (PROXY, ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("::ffff:10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        (PROXY, ["203.0.113.7,, ,"], "203.0.113.7"),
        (PROXY, ["203.0.113.7, unknown"], PROXY),
        (PROXY, ["203.0.113.7, 10.0.0.2, <script>"], PROXY),
        (PROXY, ["203.0.113.7, garbage, 10.0.0.2"], "10.0.0.2"),
        (PROXY, ["1.2.3.4.5"], PROXY),
        (PROXY, ["999.1.1.1"], PROXY),
        (PROXY, [""], PROXY),
        (None, ["203.0.113.7"], "::"),
        ("a-socket", [], "::"),
    ],
)
def test_source_is_what_our_proxies_saw(peer: str | None, forwarded: list[str], expected: str) -> None:
    """The last address that no proxy of ours has, and nothing that a client could have written itself."""
    assert source_ip(peer, forwarded, PROXIES) == expected


def test_thousands_of_claims_are_not_walked() -> None:
    """A client behind our proxies that claims to be many of them ends at one of them."""
    assert source_ip(PROXY, ["203.0.113.7," + "10.0.0.9," * 5000 + "10.0.0.8"], PROXIES) == "10.0.0.9"


def test_without_trusted_proxies_only_the_peer_counts() -> None:
    """X-Forwarded-For of whoever connects is a claim, not an address."""
    assert source_ip(PROXY, ["203.0.113.7"], ()) == PROXY


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    """Whoever is on the machine may use it, unless keys are asked for."""
    assert not needs_keys(GatewaySettings(host=host))
    assert needs_keys(GatewaySettings(host=host, require_keys=True))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "gateway.example", "::ffff:192.0.2.1"])
def test_open_host_needs_keys(host: str) -> None:
    """A gateway that others reach is never open by accident; that it is open is a decision somebody can make."""
    assert needs_keys(GatewaySettings(host=host))
    assert not needs_keys(GatewaySettings(host=host, require_keys=False))
