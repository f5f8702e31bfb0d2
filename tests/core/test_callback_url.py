"""The form of a callback's URL: what is read, and what is refused before anybody resolves a name."""

from ipaddress import ip_address
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pipeline.core.callback_url import CallbackUrl, read_url


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("https://example.com", ("https", "example.com", 443, "/")),
        ("https://example.com/", ("https", "example.com", 443, "/")),
        ("HTTPS://Example.COM/A?b=C", ("https", "example.com", 443, "/A?b=C")),
        ("https://example.com?a=1", ("https", "example.com", 443, "/?a=1")),
        ("https://example.com:8443/a/b%20c", ("https", "example.com", 8443, "/a/b%20c")),
        ("https://example.com/a@b:c", ("https", "example.com", 443, "/a@b:c")),
        ("https://example.com/?to=a@b", ("https", "example.com", 443, "/?to=a@b")),
        ("https://xn--bcher-kva.example/x", ("https", "xn--bcher-kva.example", 443, "/x")),
        ("https://my_receiver/x", ("https", "my_receiver", 443, "/x")),
        ("https://203.0.113.7/x", ("https", "203.0.113.7", 443, "/x")),
        ("https://[2001:db8::1]:8443/x", ("https", "2001:db8::1", 8443, "/x")),
        ("https://[2001:DB8:0:0::0:1]/", ("https", "2001:db8::1", 443, "/")),
        ("https://1.example/x", ("https", "1.example", 443, "/x")),
        ("https://0x7f.example.com/", ("https", "0x7f.example.com", 443, "/")),
    ],
)
def test_url_is_read(text: str, parts: tuple[str, str, int, str]) -> None:
    """Scheme and host in lower case, the scheme's port, a path always."""
    assert read_url(text, allow_http=False) == CallbackUrl(*parts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no URL"),
        ("example.com/x", "is no URL"),
        ("//example.com/x", "is no URL"),
        ("https:/example.com", "is no URL"),
        ("https://", "host ''"),
        ("https:///path", "host ''"),
        ("http://example.com/", "begins with http://, https is expected"),
        ("ftp://example.com/", "begins with ftp://"),
        ("file:///etc/passwd", "begins with file://"),
        ("https://user@example.com/", "a user or a password"),
        ("https://user:secret@example.com/", "a user or a password"),
        ("https://example.com@10.0.0.1/", "a user or a password"),
        ("https://example.com/#top", "fragment"),
        ("https://example.com#@10.0.0.1/", "fragment"),
        ("https://example.com:0/", "port 0"),
        ("https://example.com:65536/", "port 65536"),
        ("https://example.com:99999999/", "is no URL"),
        ("https://example.com:/", "is no URL"),
        ("https://example.com:8a/", "is no URL"),
        ("https://example.com./", "'' is no part of a name"),
        ("https://.example.com/", "'' is no part of a name"),
        ("https://a..b/", "'' is no part of a name"),
        ("https://-a.example/", "'-a' is no part of a name"),
        ("https://" + "a" * 64 + ".example/", "is no part of a name"),
        ("https://" + "a." * 127 + "ab/", "1 to 253 characters"),
        ("https://127.1/", "four decimal numbers"),
        ("https://0177.0.0.1/", "four decimal numbers"),
        ("https://0x7f.0.0.1/", "four decimal numbers"),
        ("https://127.0.0.0x1/", "four decimal numbers"),
        ("https://2130706433/", "four decimal numbers"),
        ("https://0x7f000001/", "four decimal numbers"),
        ("https://017700000001/", "four decimal numbers"),
        ("https://256.1.1.1/", "four decimal numbers"),
        ("https://1.2.3.4./", "is no part of a name"),
        ("https://1.2.3.4.5/", "four decimal numbers"),
        ("https://[fe80::1%25eth0]/", "is no URL"),
        ("https://[::1/", "is no URL"),
        ("https://[1.2.3.4]/", "an IPv6 address is expected"),
        ("https://[1:2]/", "an IPv6 address is expected"),
        ("https://[]/", "is no URL"),
        ("https://::1/", "is no URL"),
        ("https://bücher.example/", "beyond ASCII"),
        ("https://example。com/", "beyond ASCII"),
        ("https://①②⑦.0.0.1/", "beyond ASCII"),
        ("https://example.com/ä", "beyond ASCII"),
        ("https://exa mple.com/", "is no part of a name"),
        ("https://example.com/a b", "is no URL"),
        ("https://example.com/a\r\nHost: x", "is no URL"),
        ("https://example.com\n", "is no part of a name"),
        (" https://example.com/", "is no URL"),
        ("https://example.com\\@10.0.0.1/", "a user or a password"),
        ("https://example.com\\.10.0.0.1/", "is no URL"),
        ("https://%31%32%37.0.0.1/", "four decimal numbers"),
        ("https://%65xample.com/", "is no part of a name"),
        ("https://example.com/%", "is no URL"),
        ("https://example.com/%0", "is no URL"),
        ("https://example.com/<x>", "is no URL"),
        ("https://example.com/" + "a" * 2100, "at most 2048"),
    ],
)
def test_other_forms_are_refused(text: str, words: str) -> None:
    """Each wrong form is told in one sentence, and never with what may be a password."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        read_url(text, allow_http=False)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_http_is_read_where_it_is_allowed() -> None:
    """The setting lets http in, and nothing else."""
    assert read_url("http://example.com:8080/x", allow_http=True).port == 8080
    assert read_url("http://example.com/x", allow_http=True).place == "example.com"
    with pytest.raises(ValueError, match="https or http is expected"):
        read_url("ws://example.com/x", allow_http=True)


@given(st.text(alphabet="htpswx:/@.[]%#?&=-_019aé\\ \n", max_size=24).map("https://".__add__))
def test_what_is_read_is_read_the_same_by_others(text: str) -> None:
    """No text is accepted in which another parser would see another host or port: what is judged is what is called."""
    try:
        url = read_url(text, allow_http=False)
    except ValueError:
        return
    for written in (text, str(url)):
        other = urlsplit(written)
        assert (other.scheme, other.port or 443) == (url.scheme, url.port)
        assert (
            ip_address(other.hostname or "") == ip_address(url.host) if ":" in url.host else other.hostname == url.host
        )
        assert other.username is None
    called = URL(str(url), encoded=True)
    assert (called.scheme, called.raw_host, called.port, called.user) == (url.scheme, url.host, url.port, None)
    assert read_url(str(url), allow_http=False) == url
