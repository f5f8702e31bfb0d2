"""A callback's record: the result's bytes and headers, and where, when and how often it was tried to deliver it. Pure.

The worker writes the first one, the webhooks process each further one: the same record with some headers changed.
Only the last header of a name counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.core.callback_url import CallbackUrl, read_url
from pipeline.core.exchange import Exchange, offset_id
from pipeline.core.result_record import Headers
from schemas.request import BINARY_HEADER, is_request_id

_URL = "webhook-url"
_TENANT = "webhook-tenant"
_ATTEMPT = "webhook-attempt"
_DUE = "webhook-due"
_SOURCE = "webhook-source"
_BUSY = "webhook-busy"
_OWN = {_URL, _TENANT, _ATTEMPT, _DUE, _SOURCE, _BUSY}
_DIGITS_MAX = 15


def first_headers(result_headers: Headers, exchange: Exchange, url: str) -> Headers:
    """The headers of a callback that nobody has tried to deliver; due when its request was answered.

    Args:
        result_headers: the result's own.
        exchange: the request, completed.
        url: as the request has it, in a form that is called.
    """
    source = offset_id(exchange.topic, exchange.partition, exchange.offset)
    return [
        *result_headers,
        (_URL, url.encode()),
        (_TENANT, (exchange.tenant or "").encode()),
        (_ATTEMPT, b"0"),
        (_DUE, b"%d" % (exchange.completed_at * 1e3)),
        (_SOURCE, source.encode()),
    ]


@dataclass(frozen=True, slots=True)
class Callback:
    """A result to deliver.

    Attributes:
        request_id: the header `webhook-id`, the same at every attempt.
        tenant: whose it is; empty for none.
        model_name: of the result.
        url: where it goes.
        attempt: how many attempts there were.
        due_at: not before, Unix seconds.
        source: topic:partition:offset of the request.
        busy: how often its host had no time for it since the last attempt.
        body: the result record's bytes.
        headers: of the record that it was read from.
    """

    request_id: str
    tenant: str
    model_name: str
    url: CallbackUrl
    attempt: int
    due_at: float
    source: str
    busy: int
    body: bytes
    headers: Headers

    def record_headers(self) -> Headers:
        """The headers of its record as it is now."""
        others = [header for header in self.headers if header[0] not in _OWN]
        return [
            *others,
            (_URL, str(self.url).encode()),
            (_TENANT, self.tenant.encode()),
            (_ATTEMPT, b"%d" % self.attempt),
            (_DUE, b"%d" % round(self.due_at * 1e3)),
            (_SOURCE, self.source.encode()),
            *([(_BUSY, b"%d" % self.busy)] if self.busy else []),
        ]

    def http_headers(self) -> dict[str, str]:
        """What the receiver gets of the result's own headers: how to read the body."""
        named = {name.lower(): value.decode("latin-1") for name, value in self.headers}
        headers = {"content-type": named.get("content-type", "application/json")}
        if BINARY_HEADER in named:
            headers["Inference-Header-Content-Length"] = named[BINARY_HEADER]
        if "traceparent" in named:
            headers["traceparent"] = named["traceparent"]
        return headers

    def tried(self, due_at: float) -> "Callback":
        """The same, after one more attempt."""
        return replace(self, attempt=self.attempt + 1, due_at=due_at, busy=0)

    def found_busy(self) -> "Callback":
        """The same, after its host had no time for it once more."""
        return replace(self, busy=self.busy + 1)


def read_callback(
    value: bytes | None, headers: Sequence[tuple[str, bytes | None]], appended_at: float, *, allow_http: bool
) -> Callback:
    """The callback that a record is. One that says nothing of attempts (a dead letter, sent again) has had none.

    Args:
        value: the record's.
        headers: the record's.
        appended_at: its timestamp, Unix seconds: it is due then where it does not say when.
        allow_http: whether http is as good as https.

    Raises:
        ValueError: it is none; the message names the header, its value and what was expected.
    """
    if not value:
        raise ValueError("the record has no value: there is nothing to deliver")
    present = [(name, text) for name, text in headers if text is not None]
    texts = {name: text.decode("utf-8", "replace") for name, text in present}
    try:
        url = read_url(texts.get(_URL, ""), allow_http=allow_http)
    except ValueError as error:
        raise ValueError(f"header {_URL}: {error}") from None
    request_id = texts.get("ce_id", "")
    if not is_request_id(request_id):
        raise ValueError(f"header ce_id: {request_id!r:.80} is no request's id")
    return Callback(
        request_id=request_id,
        tenant=texts.get(_TENANT, ""),
        model_name=texts.get("ce_subject", ""),
        url=url,
        attempt=_number(texts, _ATTEMPT, 0),
        due_at=_number(texts, _DUE, round(appended_at * 1e3)) / 1e3,
        source=texts.get(_SOURCE, ""),
        busy=_number(texts, _BUSY, 0),
        body=value,
        headers=present,
    )


def _number(texts: dict[str, str], name: str, default: int) -> int:
    text = texts.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX):
        raise ValueError(f"header {name}: {text!r:.80} is no number")
    return int(text)
