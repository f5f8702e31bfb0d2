"""Which port a listener gets."""

import socket
from pathlib import Path

import pytest

from pipeline.errors import StackError
from pipeline.stack.ports import PortBook, is_port_free


def test_preferred_port_comes_first(tmp_path: Path) -> None:
    """The usual port is taken when it is free, the next free one otherwise."""
    book = PortBook(tmp_path / "ports.json", is_free=lambda port: port != 9092)
    assert book.take("valkey", 6379) == 6379
    assert book.take("kafka", 9092) == 9093
    assert book.take("controller", 9093) == 9094


def test_remembered_port_is_preferred(tmp_path: Path) -> None:
    """A restart gets the same port again although the usual one is free by now."""
    first = PortBook(tmp_path / "ports.json", is_free=lambda port: port > 9099)
    assert first.take("kafka", 9092) == 9100
    first.save()
    assert PortBook(tmp_path / "ports.json", is_free=lambda _: True).take("kafka", 9092) == 9100


def test_no_free_port_is_one_clear_error(tmp_path: Path) -> None:
    """Without a free port the error names the listener and the range."""
    with pytest.raises(StackError, match="no free port for kafka in 9092-9291"):
        PortBook(tmp_path / "ports.json", is_free=lambda _: False).take("kafka", 9092)


def test_listening_port_is_not_free() -> None:
    """A port somebody listens on is seen as taken, and free once closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_port_free(port)
    assert is_port_free(port)
