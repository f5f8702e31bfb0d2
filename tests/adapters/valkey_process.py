"""A Valkey of a test module's own, which may be killed, stopped and misconfigured."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from pipeline.config import RedisSettings
from pipeline.stack.ports import PortBook
from pipeline.stack.valkey import make_valkey

# It takes 30 ms; a busy machine's worst is far below.
_READY_S_MAX = 15.0


class ValkeyProcess:
    """One server on one port, over all its starts. Nothing survives a start: it keeps no file.

    Args:
        folder: for its files.
    """

    def __init__(self, folder: Path) -> None:
        spec, url = make_valkey(folder, PortBook(folder / "ports.json"), dict(os.environ), _READY_S_MAX)
        self._argv = (*spec.argv, "--appendonly", "no")
        self.url = url
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> RedisSettings:
        """Its address."""
        return RedisSettings(url=self.url)

    @property
    def admin(self) -> Any:
        """A connection for what tests do behind the cache's back."""
        return Redis.from_url(self.url, socket_timeout=5.0)

    def start(self) -> None:
        """Returns when it answers."""
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + _READY_S_MAX
        while True:
            try:
                with self.admin as admin:
                    admin.ping()
            except RedisError:
                assert self._process.poll() is None, "valkey ended"
                assert time.monotonic() < limit, "valkey does not answer"
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """It is gone at once, with all it held. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """It answers nobody, but keeps its connections."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again."""
        self._signal(signal.SIGCONT)

    def reset(self) -> None:
        """Running, empty, and as it was first, for the next test."""
        if self._process is None:
            self.start()
        self.go_on()
        with self.admin as admin:
            admin.flushall()
            admin.config_set("min-replicas-to-write", 0)
            admin.config_set("maxmemory", 512 << 20)
            admin.config_set("maxmemory-policy", "volatile-ttl")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
