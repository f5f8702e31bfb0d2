"""`pipeline cache` as an operator runs it: a process of its own, on the settings of a test."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from pipeline.config import Settings
from tests.live.processes import environment
from tests.models.folders import PROJECT

_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it printed."""

    exit_code: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        """Standard output, as JSON."""
        return json.loads(self.output)


async def run_cache(settings: Settings, *arguments: str) -> Ran:
    """Runs `pipeline cache` to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pipeline", "cache", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=PROJECT, env=os.environ | environment(settings),
    )  # fmt: skip
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Ran(process.returncode, output.decode(), errors.decode())


async def cache_stats(settings: Settings) -> Any:
    """What `cache stats --json` says while every worker answers."""
    ran = await run_cache(settings, "stats", "--json")
    assert (ran.exit_code, ran.errors) == (0, ""), ran
    return ran.document
