"""The receiver in docs/webhooks.md, as its reader would run it."""

import asyncio
import ipaddress
import os
import re
import socket
import sys
import time
from pathlib import Path

from pipeline.adapters.webhook_http import WebhookHttp
from pipeline.core.callback_url import read_url
from pipeline.core.webhook_schedule import Answered, Outcome, Unanswered
from pipeline.core.webhook_signature import signatures, signing_key
from tests.models.folders import PROJECT
from tests.webhooks.callbacks import OLD_SECRET, SECRET

BODY = b'{"id":"r-1","status":"succeeded"}'


def example() -> str:
    """The only Python program of the page."""
    (program,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "webhooks.md").read_text(), re.DOTALL)
    assert isinstance(program, str)
    return program


async def call(port: int, *secrets: str) -> Outcome:
    """One delivery, signed with these; tried again until somebody listens."""
    now = int(time.time())
    keys = [signing_key(secret) for secret in secrets]
    headers = {"webhook-id": "r-1", "webhook-timestamp": str(now), "content-type": "application/json"}
    headers["webhook-signature"] = signatures(keys, "r-1", now, BODY)
    async with WebhookHttp([ipaddress.ip_network("127.0.0.0/8")], 5, look_ups_max=1) as http:
        while True:
            outcome = await http.post(read_url(f"http://127.0.0.1:{port}/", allow_http=True), BODY, headers)
            if not (isinstance(outcome, Unanswered) and outcome.kind == "connection"):
                return outcome
            await asyncio.sleep(0.05)


async def test_documented_receiver_believes_us_and_nobody_else(tmp_path: Path) -> None:
    """It takes what is signed with its secret, alone or beside another, prints it once, and refuses the rest."""
    (tmp_path / "receiver.py").write_text(example())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "receiver.py", str(port), cwd=tmp_path, env=os.environ | {"WEBHOOK_SECRET": SECRET},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert await call(port, SECRET) == Answered(204)
        assert await call(port, OLD_SECRET, SECRET) == Answered(204)
        assert await call(port, OLD_SECRET) == Answered(401)
    finally:
        process.kill()
        printed, _ = await process.communicate()
    assert printed == b"r-1 succeeded\n"
