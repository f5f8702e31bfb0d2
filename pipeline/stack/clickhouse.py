"""ClickHouse: the embedded engine `chdb` in a process of its own, behind ClickHouse's HTTP interface."""

import importlib.util
import os
import sys
from pathlib import Path

from pipeline.stack.plan import PartFailedError
from pipeline.stack.ports import PortBook
from pipeline.stack.probes import answers_http_ok
from pipeline.stack.process import ProcessSpec

PREFERRED_PORT = 8123
_SOURCE_ROOT = Path(__file__).parents[2]


def make_clickhouse(
    data_dir: Path, ports: PortBook, env: dict[str, str], ready_timeout_s: float
) -> tuple[ProcessSpec, str]:
    """The server's spec, and its URL.

    Raises:
        PartFailedError: the package is missing.
    """
    if importlib.util.find_spec("chdb") is None:
        raise PartFailedError("clickhouse", "No module named 'chdb': install the extra `local`")
    folder = data_dir / "clickhouse"
    folder.mkdir(exist_ok=True)
    port = ports.take("clickhouse", PREFERRED_PORT)
    path = os.pathsep.join(filter(None, (str(_SOURCE_ROOT), env.get("PYTHONPATH", ""))))
    argv = (sys.executable, "-m", "pipeline.stack.clickhouse_http", "--path", str(folder), "--port", str(port))

    async def is_ready() -> bool:
        return await answers_http_ok(port, "/ping")

    spec = ProcessSpec(
        "clickhouse", argv, env | {"PYTHONPATH": path}, folder, is_ready, ready_timeout_s=ready_timeout_s
    )
    return spec, f"http://127.0.0.1:{port}"
