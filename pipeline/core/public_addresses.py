"""Which addresses callbacks may go to: public unicast ones, and what the settings allow besides. Pure.

The tables are IANA's special-purpose registries, written out: Python's `is_global` of 3.11 takes site-local addresses
(fec0::), those for documentation (3fff::) and 6to4 forms of private networks for public. In IPv6 only 2000::/3 is given
out as global unicast, so everything else is refused without being named; what is named there is for the message.

Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890 and its updates).
"""

import ipaddress
from collections.abc import Iterable, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NOT_PUBLIC_V4 = {
    "0.0.0.0/8": "of this network, unspecified",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared by a carrier's customers",
    "127.0.0.0/8": "loopback",
    # Azure answers there, from any of its machines, what others answer at 169.254.169.254.
    "168.63.129.16/32": "a cloud's metadata",
    "169.254.0.0/16": "link-local, a cloud's metadata",
    "172.16.0.0/12": "private",
    # 192.0.0.192 is a cloud's metadata, too.
    "192.0.0.0/24": "for protocols",
    "192.0.2.0/24": "for documentation",
    "192.88.99.0/24": "a 6to4 relay",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "for benchmarks",
    "198.51.100.0/24": "for documentation",
    "203.0.113.0/24": "for documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved, broadcast",
}
_NOT_PUBLIC_V6 = {
    "::/128": "unspecified",
    "::1/128": "loopback",
    "::/96": "an IPv4-compatible form",
    "64:ff9b:1::/48": "a translation of one network's own",
    "100::/64": "discarded",
    "2001::/32": "a Teredo form",
    "2001::/23": "for protocols",
    "2001:db8::/32": "for documentation",
    # Its IPv4 address may be anybody's, and its public relays are gone.
    "2002::/16": "a 6to4 form",
    "3fff::/20": "for documentation",
    "5f00::/16": "for segment routing",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}
_REFUSED_V4 = [(ipaddress.IPv4Network(network), words) for network, words in _NOT_PUBLIC_V4.items()]
_REFUSED_V6 = [(ipaddress.IPv6Network(network), words) for network, words in _NOT_PUBLIC_V6.items()]
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# How a network without IPv4 reaches it (RFC 6052): the address inside is the one that is called.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefused(ValueError):  # noqa: N818 - a state, not a mistake
    """An address that callbacks do not go to; the message says which and why."""


def check_addresses(host: str, texts: Iterable[str], allowed: Sequence[Network]) -> list[Address]:
    """The addresses of a host, if callbacks may go to every one of them.

    One that may not refuses them all: whoever gives a public address beside a private one wants to be asked twice.

    Args:
        host: whose they are, for the message.
        texts: as a resolver writes them.
        allowed: networks that are not public and may be called all the same.

    Raises:
        AddressRefused: callbacks do not go to one of them, or it is no address.
    """
    addresses = []
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise AddressRefused(f"{host} has {text!r:.80}, which is no address") from None
        if (reason := refusal(address, allowed)) is not None:
            raise AddressRefused(f"{host} has the address {address}, which is not public ({reason})")
        addresses.append(address)
    return addresses


def refusal(address: Address, allowed: Sequence[Network] = ()) -> str | None:
    """Why callbacks do not go to an address, in a few words; None where they may."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "of one interface"
        address = _called(address)
    if any(address in network for network in allowed):
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return next((words for network, words in _REFUSED_V4 if address in network), None)
    named = next((words for network, words in _REFUSED_V6 if address in network), None)
    return named or (None if address in _GLOBAL_UNICAST else "not given out")


def _called(address: ipaddress.IPv6Address) -> Address:
    """The address that is called where this one stands for another."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
