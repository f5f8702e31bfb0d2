"""Signatures of callbacks: Standard Webhooks 1.0, symmetric (`v1`). Pure.

What is signed is `id.timestamp.body`. The standard warns of ids with full stops, which ours may have: with them a part
of the id could pass for the timestamp, and the rest for the beginning of the body. Not here: a body of ours begins with
`{`, and neither an id nor a timestamp has one, so the first `{` shows where the body begins, and the last two full
stops before it where the timestamp does. A test holds this.

Source: Standard Webhooks 1.0.0, "Signature scheme" and "Webhook headers".
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

SECRET_PREFIX = "whsec_"  # noqa: S105 - how secrets begin, not one of them
# 192 to 512 bits, by the standard. Longer than SHA-256's block of 64 bytes a key is hashed first, and no stronger.
KEY_BYTES_MIN = 24
KEY_BYTES_MAX = 64


def signing_key(secret: str) -> bytes:
    """The key that a secret (`whsec_` and base64, padded or not) is the text of.

    Raises:
        ValueError: it is none; the message never has a part of it.
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(f"expected {SECRET_PREFIX} before base64, got a text of {len(secret)} characters without it")
    text = secret.removeprefix(SECRET_PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"expected base64 behind {SECRET_PREFIX}, got other characters or a wrong length") from None
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise ValueError(f"expected {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes behind {SECRET_PREFIX}, got {len(key)}")
    return key


def signatures(keys: Iterable[bytes], webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each key, separated by spaces.

    Args:
        keys: the current one and, while it is being replaced, the one before; receivers take whichever fits.
        webhook_id: the header `webhook-id`.
        timestamp_s: the header `webhook-timestamp`, Unix seconds of this attempt.
        body: the bytes that are sent.
    """
    head = f"{webhook_id}.{timestamp_s}.".encode()
    return " ".join([f"v1,{_digest(key, head, body)}" for key in keys])


def _digest(key: bytes, head: bytes, body: bytes) -> str:
    code = hmac.new(key, head, hashlib.sha256)
    code.update(body)  # up to 8 MiB, not copied for its head
    return base64.b64encode(code.digest()).decode()
