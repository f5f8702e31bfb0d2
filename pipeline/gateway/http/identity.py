"""Who sends a request: its address, and whose it is.

X-Forwarded-For is a claim of whoever connects. It is believed only where the peer is a proxy of ours
(`gateway.trusted_proxies`), and only as far as our proxies wrote it: from the right, up to the first address that is
not one of theirs.
"""

import ipaddress
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from starlette.requests import Request

from pipeline.config import GatewaySettings
from pipeline.gateway.http.credentials import Credentials, KeyRefused, RateExceeded
from pipeline.gateway.http.limits import slot_of
from pipeline.gateway.http.problem import SLOT, HttpCode, Problem
from schemas.errors import ErrorCode

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What the inference log has for an address that nobody knows.
UNKNOWN_ADDRESS = "::"
# More proxies of ours than anybody has; a client that claims thousands of their addresses costs no more than these.
_HOPS_MAX = 32


class Identity(NamedTuple):
    """Whose request it is, and where it comes from.

    Attributes:
        tenant: of the credential; None without one.
        key_id: which credential it was, for the log; never the credential.
        source_ip: of the peer, or of the client behind our proxies.
    """

    tenant: str | None
    key_id: str | None
    source_ip: str


def make_identify(settings: GatewaySettings, credentials: Credentials | None = None) -> Callable[[Request], Identity]:
    """How requests are told apart with these settings.

    Args:
        settings: whose X-Forwarded-For is believed.
        credentials: the API keys; None: nobody needs one.

    Returns:
        It raises Problem (401) for a request without a key that is known.
    """
    trusted = tuple(settings.trusted_proxies)

    def identify(request: Request) -> Identity:
        peer = None if request.client is None else request.client.host
        forwarded = request.headers.getlist("x-forwarded-for") if trusted else ()
        address = source_ip(peer, forwarded, trusted)
        if credentials is None:
            return Identity(None, None, address)
        try:
            holder = credentials.holder(request.headers)
        except KeyRefused as refusal:
            raise Problem(
                401, HttpCode.KEY_REFUSED, str(refusal), headers={"www-authenticate": 'Bearer realm="inference"'}
            ) from None
        if (slot := request.scope.get(SLOT)) is not None:
            slot.tenant = holder.tenant
        return Identity(holder.tenant, holder.key_id, address)

    return identify


def make_admit(
    identify: Callable[[Request], Identity], credentials: Credentials | None
) -> Callable[[Request], Awaitable[Identity]]:
    """Whose a request is that hands in work: it counts against its tenant's rate.

    Returns:
        It raises Problem (401), or 429 where it comes too soon.
    """

    async def admit(request: Request) -> Identity:
        identity = identify(request)
        if credentials is not None and identity.key_id is not None:
            try:
                quota = await credentials.admit(identity.key_id)
            except RateExceeded as exceeded:
                slot_of(request).headers = exceeded.quota.headers()
                raise Problem(
                    429, ErrorCode.OVERLOADED, str(exceeded), retry_after_s=max(math.ceil(exceeded.retry_after_s), 1)
                ) from None
            if quota is not None:
                slot_of(request).headers = quota.headers()
        return identity

    return admit


def source_ip(peer: str | None, forwarded: Sequence[str], trusted: Iterable[Network]) -> str:
    """The address a request comes from.

    Args:
        peer: who is connected.
        forwarded: the X-Forwarded-For headers in their order, each a list.
        trusted: the networks of our own proxies.

    Returns:
        The peer; behind our proxies, the last address that is none of theirs. Where one of them wrote what is no
        address, that proxy: nothing to the left of it is believed.
    """
    found = None if peer is None else parsed_address(peer)
    if found is None:
        return UNKNOWN_ADDRESS
    networks = tuple(trusted)
    claims = [claim for header in forwarded for claim in header.split(",") if claim.strip()][-_HOPS_MAX:]
    while claims and _is_in(found, networks):
        claimed = parsed_address(claims.pop())
        if claimed is None:
            break
        found = claimed
    return str(found)


def parsed_address(text: str) -> Address | None:
    """An address as proxies write it: with or without port, brackets, zone; IPv4 mapped into IPv6 is IPv4."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine can reach a server bound to this host."""
    if host == "localhost":
        return True
    address = parsed_address(host)
    return address is not None and address.is_loopback


def needs_keys(settings: GatewaySettings) -> bool:
    """Whether requests need API keys: as it is said, else where others than this machine can reach the gateway."""
    return not is_loopback(settings.host) if settings.require_keys is None else settings.require_keys
