"""API keys: `ipk_<id: 16 hex>_<secret: 43 of base64url>`, the secret 32 random bytes.

The id finds the key's record, in which the secret stands as its SHA-256: 256 random bits need no slow hash, and nobody
who reads the topic can call as its owner.
"""

import base64
import hashlib
import hmac
import re
from datetime import datetime
from typing import NamedTuple

from schemas.api_key import ApiKeyRecord

ID_BYTES = 8
SECRET_BYTES = 32
_KEY = re.compile(r"ipk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})", re.ASCII)


class ApiKey(NamedTuple):
    """A key as its owner has it."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"ipk_{self.id}_{self.secret}"

    def __repr__(self) -> str:
        return f"ApiKey({self.id})"


def make_key(random: bytes) -> ApiKey:
    """A key of so many random bytes: `ID_BYTES + SECRET_BYTES`."""
    if len(random) != ID_BYTES + SECRET_BYTES:
        raise ValueError(f"a key is made of {ID_BYTES + SECRET_BYTES} random bytes, not {len(random)}")
    return ApiKey(random[:ID_BYTES].hex(), base64.urlsafe_b64encode(random[ID_BYTES:]).decode().rstrip("="))


def parse_key(text: str) -> ApiKey | None:
    """The key in a header's text; None for what is none."""
    found = _KEY.fullmatch(text)
    return None if found is None else ApiKey(found[1], found[2])


def record_of(
    key: ApiKey, *, tenant: str, label: str, rate: float | None, burst: int | None, now: datetime
) -> ApiKeyRecord:
    """What is kept of a key.

    Raises:
        pydantic.ValidationError: a member is out of its range.
    """
    return ApiKeyRecord(
        id=key.id, digest=_digest(key.secret), tenant=tenant, label=label, rate=rate, burst=burst, created_at=now
    )


def opens(key: ApiKey, record: ApiKeyRecord) -> bool:
    """Whether the record is this key's; it takes as long for a wrong secret as for the right one."""
    return hmac.compare_digest(_digest(key.secret), record.digest) and key.id == record.id


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
