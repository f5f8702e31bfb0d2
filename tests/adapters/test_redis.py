"""How Redis clients are made from settings, and what is said about wrong ones."""

import ssl
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import exceptions
from redis.asyncio.connection import SSLConnection

from pipeline.adapters.redis_connection import address_of, cause_of, client_of, error_kind
from pipeline.config import RedisSettings, TlsSettings
from pipeline.errors import SettingsError


@pytest.mark.parametrize(
    ("url", "address", "number"),
    [
        ("redis://cache", "cache:6379", 0),
        ("redis://cache:7000/3", "cache:7000", 3),
        ("redis://worker@10.0.0.1:6379/", "10.0.0.1:6379", 0),
        ("rediss://cache:6380", "cache:6380", 0),
    ],
)
def test_url_says_where(url: str, address: str, number: int) -> None:
    """Host, port and database come from the URL."""
    settings = RedisSettings(url=url)
    options = client_of(settings).connection_pool.connection_kwargs
    assert (address_of(settings), options["db"]) == (address, number)


@pytest.mark.parametrize(
    "url",
    [
        None, "", "cache:6379", "http://cache", "redis://", "redis://:hunter2@cache", "redis://me:hunter2@cache/0",
        "redis://cache/first", "redis://cache:0", "redis://cache:port", "redis://cache:70000", "redis://cache/1/2",
    ],
)  # fmt: skip
def test_wrong_url_is_named_without_its_password(url: str | None) -> None:
    """What is no URL of the form asked for stops the start, and a password in it is not printed."""
    with pytest.raises(SettingsError, match="PIPELINE_REDIS__URL") as refusal:
        client_of(RedisSettings(url=url))
    assert "hunter2" not in str(refusal.value)


def test_password_and_user_reach_the_client() -> None:
    """The password is a setting of its own; the user stands in the URL."""
    options = client_of(
        RedisSettings(url="redis://w%40x@cache", password=SecretStr("hunter2"))
    ).connection_pool.connection_kwargs
    assert (options["username"], options["password"]) == ("w@x", "hunter2")


@pytest.mark.parametrize(("url", "enabled"), [("rediss://cache", False), ("redis://cache", True)])
def test_tls_verifies(url: str, enabled: bool) -> None:
    """With TLS, by the URL or by the setting, the server's certificate and name are checked."""
    pool = client_of(RedisSettings(url=url, tls=TlsSettings(enabled=enabled))).connection_pool
    assert pool.connection_class is SSLConnection
    connection = pool.connection_class(**pool.connection_kwargs)
    assert isinstance(connection, SSLConnection)
    assert connection.cert_reqs is ssl.CERT_REQUIRED
    assert connection.check_hostname


def test_missing_tls_file_is_named(tmp_path: Path) -> None:
    """A file that is not there stops the start, not the first look-up."""
    with pytest.raises(SettingsError, match=r"redis\.tls.*absent\.pem"):
        client_of(RedisSettings(url="rediss://cache", tls=TlsSettings(ca_file=tmp_path / "absent.pem")))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.AuthenticationError("no"), "auth"),
        (exceptions.BusyLoadingError("loading"), "loading"),
        (exceptions.ConnectionError("refused"), "connection"),
        (ConnectionResetError(), "connection"),
        (exceptions.TimeoutError("slow"), "timeout"),
        (TimeoutError(), "timeout"),
        (exceptions.ReadOnlyError("replica"), "read_only"),
        (exceptions.OutOfMemoryError("full"), "out_of_memory"),
        (exceptions.NoPermissionError("acl"), "permission"),
        (exceptions.ResponseError("NOREPLICAS not enough good replicas"), "no_replicas"),
        (exceptions.ResponseError("ERR syntax error"), "response"),
        (exceptions.InvalidResponse("what"), "other"),
        (ValueError(), "other"),
    ],
)
def test_error_has_its_kind(error: Exception, kind: str) -> None:
    """Every error is counted under a word that says what to do, and told in a line that is never empty."""
    assert error_kind(error) == kind
    assert cause_of(error).startswith(f"{kind}: ")
    assert len(cause_of(error)) > len(kind) + 2
