"""Which addresses callbacks may go to: every form in which others were led to what is not public."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.public_addresses import AddressRefused, check_addresses, refusal

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0",
    "192.0.3.0", "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
    "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
    "2606:4700:4700::1111", "2001:4860:4860::8888", "2001:200::1", "2001:db7:ffff::1", "2001:db9::1", "2a00:1450::1",
    "3ffe:ffff::1", "2003::1",
    # The public address inside is the one that is called.
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b::808:808",
]  # fmt: skip
NOT_PUBLIC = {
    "unspecified": ["0.0.0.0", "0.0.0.1", "0.255.255.255", "::"],
    "loopback": ["127.0.0.1", "127.1.2.3", "127.255.255.255", "::1"],
    "private": ["10.0.0.0", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1",
                "192.168.255.255", "fc00::1", "fd00::1", "fdff:ffff::1"],
    "link-local": ["169.254.0.1", "169.254.255.255", "fe80::1", "febf::1"],
    "metadata": ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "168.63.129.16",
                 "192.0.0.192", "fd20:ce::254"],
    "shared": ["100.64.0.0", "100.64.0.1", "100.127.255.255"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.254", "255.255.255.255", "192.0.0.1", "192.0.0.9", "198.18.0.1",
                 "198.19.255.255", "192.88.99.1", "100::1", "200::1", "4000::1", "8000::1", "fec0::1", "5f00::1",
                 "2001:2::1", "2001:10::1", "2001:20::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1", "3fff:fff::1"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0"],
    "compatible": ["::127.0.0.1", "::10.0.0.1", "::8.8.8.8", "::2"],
    "translated": ["64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::8.8.8.8",
                   "64:ff9b:0:0:0:1:808:808", "::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"],
    "6to4": ["2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::1", "2002:808:808::1"],
    "teredo": ["2001:0:4136:e378:8000:63bf:80ff:fffe", "2001::1"],
    "of one interface": ["fe80::1%eth0", "2606:4700:4700::1111%1"],
}  # fmt: skip
NO_ADDRESS = ["", " 8.8.8.8", "8.8.8.8 ", "0177.0.0.1", "0x7f.0.0.1", "127.1", "2130706433", "0x7f000001", "8.8.8",
              "008.8.8.8", "8.8.8.8.", "[::1]", "1.2.3.4:80", "localhost", "８.8.8.8", "8.8.8.8\x00",
              "8.8.8.8/32"]  # fmt: skip


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_may_be_called(text: str) -> None:
    """What anybody on the Internet can reach may be called, up to the last address before a refused network."""
    assert refusal(ipaddress.ip_address(text)) is None
    assert check_addresses("example.com", [text], ()) == [ipaddress.ip_address(text)]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in NOT_PUBLIC.items() for text in texts])
def test_other_addresses_are_refused(kind: str, text: str) -> None:
    """What is not public in any form is refused, with the host, the address and a reason."""
    with pytest.raises(AddressRefused) as caught:
        check_addresses("example.com", [text], ())
    assert str(caught.value).startswith(
        f"example.com has the address {ipaddress.ip_address(text)}, which is not public ("
    )


@pytest.mark.parametrize("text", NO_ADDRESS)
def test_spellings_of_addresses_are_no_addresses(text: str) -> None:
    """Octal, hexadecimal, short and decorated spellings are not read at all, so nobody reads them in another way."""
    with pytest.raises(AddressRefused, match="which is no address"):
        check_addresses("example.com", [text], ())


def test_one_refused_address_refuses_its_host() -> None:
    """A name with a public and a private address is not called at either of them."""
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1"):
        check_addresses("example.com", ["8.8.8.8", "10.0.0.1"], ())


def test_allowed_networks_are_called() -> None:
    """What the settings allow is called, mapped forms of it too, and nothing beside it."""
    allowed = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("fd00:1::/32"))
    called = ["127.0.0.1", "::ffff:127.0.0.1", "fd00:1::5", "8.8.8.8"]
    assert len(check_addresses("example.com", called, allowed)) == len(called)
    for refused in ("10.0.0.1", "::1", "fd00:2::1", "169.254.169.254", "::127.0.0.1"):
        with pytest.raises(AddressRefused):
            check_addresses("example.com", [refused], allowed)


@given(st.ip_addresses(v=4))
def test_python_knows_no_stricter_rule_for_ipv4(address: ipaddress.IPv4Address) -> None:
    """Whatever Python's own tables hold for private is refused here: ours only add to them."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert refusal(address) is not None


@given(st.ip_addresses(v=6))
def test_ipv6_outside_of_global_unicast_is_refused(address: ipaddress.IPv6Address) -> None:
    """In IPv6 nothing but 2000::/3 is called, and no address that Python holds for private."""
    inside = address.ipv4_mapped
    if inside is not None or address in ipaddress.ip_network("64:ff9b::/96"):
        assert refusal(address) == refusal(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    elif address not in ipaddress.ip_network("2000::/3") or not address.is_global:
        assert refusal(address) is not None


@given(st.ip_addresses(v=4))
def test_mapped_forms_are_judged_as_what_they_stand_for(address: ipaddress.IPv4Address) -> None:
    """An IPv4 address has one verdict, plain, mapped or translated."""
    packed = address.packed
    mapped = ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + packed)
    translated = ipaddress.IPv6Address(socket.inet_pton(socket.AF_INET6, "64:ff9b::")[:12] + packed)
    assert refusal(mapped) == refusal(translated) == refusal(address)
