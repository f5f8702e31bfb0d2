"""Signatures of callbacks, against the standard's vectors and its own library."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from pipeline.core.webhook_signature import signatures, signing_key

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEYS = st.binary(min_size=24, max_size=64)
IDS = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)
TIMES = st.integers(min_value=0, max_value=4_000_000_000)
BODIES = st.text(max_size=200).map(lambda text: ('{"id":' + text).encode("utf-8", "replace"))


def secret_of(key: bytes) -> str:
    """A key as settings and receivers have it."""
    return "whsec_" + base64.b64encode(key).decode()


def test_signature_is_the_standards() -> None:
    """The vector of the standard's libraries comes out."""
    made = signatures([signing_key(SECRET)], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(KEYS, IDS, TIMES, BODIES)
def test_library_makes_the_same_signature(key: bytes, webhook_id: str, timestamp_s: int, body: bytes) -> None:
    """What receivers compute with the standard's library is what is sent."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=timestamp_s)
    assert signatures([key], webhook_id, timestamp_s, body) == Webhook(secret_of(key)).sign(
        webhook_id, at, body.decode()
    )


@given(st.lists(KEYS, min_size=1, max_size=4, unique=True), IDS, BODIES)
def test_every_key_of_a_rotation_verifies(keys: list[bytes], webhook_id: str, body: bytes) -> None:
    """While a secret is replaced receivers with the old one and with the new one believe the same call."""
    timestamp_s = int(datetime.now(UTC).timestamp())
    headers = {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": signatures(keys, webhook_id, timestamp_s, body),
    }
    for key in keys:
        Webhook(secret_of(key)).verify(body, headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_of(b"another key, of 24 bytes")).verify(body, headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_of(keys[0])).verify(body + b" ", headers, json_parse=False)


@given(KEYS, IDS, TIMES, st.binary(max_size=300))
def test_any_bytes_are_signed(key: bytes, webhook_id: str, timestamp_s: int, body: bytes) -> None:
    """Raw tensors behind the JSON are signed as they are sent."""
    content = f"{webhook_id}.{timestamp_s}.".encode() + body
    expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    assert signatures([key], webhook_id, timestamp_s, body) == f"v1,{expected}"


@given(IDS, TIMES, BODIES, IDS, TIMES, BODIES)
def test_signed_content_is_read_in_one_way(
    id_a: str, time_a: int, body_a: bytes, id_b: str, time_b: int, body_b: bytes
) -> None:
    """Although ids may have full stops, no two deliveries have the same content to sign: `{` begins the body."""
    a, b = ((i, t, f"{i}.{t}.".encode() + body) for i, t, body in ((id_a, time_a, body_a), (id_b, time_b, body_b)))
    head, _, body = a[2].partition(b"{")
    webhook_id, _, timestamp = head.decode().removesuffix(".").rpartition(".")
    assert (webhook_id, int(timestamp), b"{" + body) == (id_a, time_a, body_a)
    assert (a[2] == b[2]) == ((id_a, time_a, body_a) == (id_b, time_b, body_b))


@given(KEYS)
def test_secret_is_the_key(key: bytes) -> None:
    """A secret is read back, padded or not."""
    assert signing_key(secret_of(key)) == signing_key(secret_of(key).rstrip("=")) == key


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("", "expected whsec_"),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "expected whsec_"),
        ("whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "expected whsec_"),
        ("whsec_", "expected 24 to 64 bytes behind whsec_, got 0"),
        ("whsec_MfKQ9r8GKYqr*wjUPD8ILPZIo2LaLaSw", "expected base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwA", "expected base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS\n", "expected base64"),
        (secret_of(b"x" * 23), "got 23"),
        (secret_of(b"x" * 65), "got 65"),
    ],
)
def test_other_secrets_are_refused(secret: str, words: str) -> None:
    """A wrong secret is told by what was expected, and no part of it is."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        signing_key(secret)
    assert words in str(caught.value)
    assert secret[6:] == "" or secret[6:] not in str(caught.value)
