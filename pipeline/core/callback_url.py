"""A callback's URL by its form: what is no plain https address is refused before anybody resolves it. Pure.

One pattern reads the whole of it, and what was read is what is called: two parsers that differ about a host are how
others were led to their own servers. Ports are free: what answers on a public address is anybody's to call.
"""

import ipaddress
import re
from typing import NamedTuple

URL_LENGTH_MAX = 2048  # as `schemas.request.Callback` has it
_HOST_LENGTH_MAX = 253  # RFC 1035, section 2.3.4
# Of a path and a query RFC 3986 allows these; what is outside of them is written as %XX.
_REST = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]|-]|%[0-9A-Fa-f]{2})*"
_URL = re.compile(rf"(?P<scheme>[A-Za-z]+)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^/?#@:\[\]\\]*)(?::(?P<port>[0-9]{{1,5}}))?"
                  rf"(?P<rest>(?:[/?]{_REST})?)")  # fmt: skip
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
# A last label like this makes resolvers read the whole as a number: 0x7f000001, 017700000001, 2130706433, 127.1.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORTS = {"https": 443, "http": 80}


class CallbackUrl(NamedTuple):
    """What of a URL is called.

    Attributes:
        scheme: https or http.
        host: a name in lower case, an IPv4 address, or an IPv6 one without brackets.
        port: the scheme's own where none is given.
        target: path and query, never empty.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def place(self) -> str:
        """Who is called, as the header Host names it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}{self.target}"


def read_url(text: str, *, allow_http: bool) -> CallbackUrl:
    """The URL's parts.

    Args:
        text: as the request has it.
        allow_http: whether http is as good as https.

    Raises:
        ValueError: it is none that is called; the message says what is wrong and what was expected.
    """
    if len(text) > URL_LENGTH_MAX:
        raise ValueError(f"{len(text)} characters, at most {URL_LENGTH_MAX} are allowed")
    if not text.isascii():
        raise ValueError(f"{text!r:.80} has characters beyond ASCII: write names as xn--…, the rest as %XX")
    if "#" in text:
        raise ValueError(f"{text!r:.80} has a fragment, which no server sees")
    if "@" in text.partition("://")[2].partition("/")[0].partition("?")[0]:
        raise ValueError("it has a user or a password before the host; a signature says who calls")
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r:.80} is no URL: https://host[:port][/path][?query] is expected")
    scheme = match["scheme"].lower()
    if scheme != "https" and not (scheme == "http" and allow_http):
        expected = "https or http" if allow_http else "https"
        raise ValueError(f"{text!r:.80} begins with {scheme}://, {expected} is expected")
    port = int(match["port"]) if match["port"] else _PORTS[scheme]
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port}: 1 to 65535 are ports")
    rest = match["rest"]
    return CallbackUrl(scheme, _host(match["host"]), port, rest if rest.startswith("/") else f"/{rest}")


def _host(text: str) -> str:
    host = text.lower()
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"host {host!r:.80}: an IPv6 address is expected between brackets") from None
    if not host or len(host) > _HOST_LENGTH_MAX:
        raise ValueError(f"host {host!r:.80}: 1 to {_HOST_LENGTH_MAX} characters are expected")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        if not _IPV4.fullmatch(host):
            raise ValueError(f"host {host!r:.80}: an IPv4 address is four decimal numbers, as in 203.0.113.7")
        return host
    if (wrong := next((label for label in labels if not _LABEL.fullmatch(label)), None)) is not None:
        raise ValueError(f"host {host!r:.80}: {wrong!r:.70} is no part of a name (letters, digits, - and _)")
    return host


def is_address(host: str) -> bool:
    """Whether the host is an address and not a name: nobody resolves it."""
    return ":" in host or _IPV4.fullmatch(host) is not None
