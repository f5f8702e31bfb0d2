"""The gateway in `up` and `status`: its port, and what programs read of it."""

import socket
from pathlib import Path

import pytest

from pipeline.cli.local_pipeline import _gateway_port
from pipeline.cli.probes import Probed
from pipeline.cli.status import as_document
from pipeline.config import GatewaySettings, Settings
from pipeline.errors import SettingsError
from pipeline.stack.ports import PortBook

URL = "http://127.0.0.1:8080"


@pytest.mark.parametrize(("problem", "expected"), [("", {"url": URL}), ("no answer within 3 s", None)])
def test_status_has_the_gateways_url(problem: str, expected: dict[str, str] | None) -> None:
    """Where it is while it answers, null while it does not."""
    probed = [Probed("gateway", "gateway", URL, {"url": URL}, problem)]
    assert as_document(Settings(), probed)["gateway"] == expected


def test_port_of_last_time_is_taken_again(tmp_path: Path) -> None:
    """8080 where it is free, else the next one, and the same again after a restart."""
    taken = {8080}
    book = PortBook(tmp_path / "ports.json", lambda port: port not in taken)
    assert _gateway_port(Settings(), book) == 8081
    book.save()
    assert _gateway_port(Settings(), PortBook(tmp_path / "ports.json", lambda _: True)) == 8081


def test_port_that_was_asked_for_is_never_another(tmp_path: Path) -> None:
    """A taken port is told with its setting before anything starts."""
    book = PortBook(tmp_path / "ports.json")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = Settings(gateway=GatewaySettings(port=port))
        with pytest.raises(SettingsError, match=f"PIPELINE_GATEWAY__PORT is {port}"):
            _gateway_port(settings, book)
    assert _gateway_port(settings, book) == port
