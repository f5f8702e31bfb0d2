"""Servers that take new models only by starting again: one at a time, and only while all others answer.

The rule is that of a rolling update with `maxUnavailable: 1`, whatever the reason why a server is away. What a server
serves is read from its own configuration (`content_mark`), so one that has everything already is left alone: one
restart brings all models of the serving folder, and a watcher that died in between is followed by one that goes on.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from pipeline.core.model_config import content_mark
from pipeline.errors import ModelNotReady, ServerUnavailable
from pipeline.watcher.fleet.check import CheckLimits, NotRestarted
from pipeline.watcher.fleet.triton_control import TritonControl
from pipeline.watcher.serving.folder import StagedModel

logger = logging.getLogger(__name__)

# A Triton is away for a second at least: this sees it, and costs a server 20 answers a second.
_LOOK_S = 0.05
_NOTHING = "nothing"


class RestartOrder(Protocol):
    """Has somebody restart one server."""

    async def restart(self, address: str) -> None:
        """Returns once the order is given; the server may be gone later, and is back later.

        Raises:
            NotRestarted: nobody took the order, and why.
        """
        ...


class Restart:
    """Brings servers to what is staged by restarts.

    A server that was restarted for some content and came back without it is not restarted for the same content again:
    it would be restarted at every pass.

    Args:
        servers: the whole fleet.
        order: restarts one of them.
        limits: how long a server may be away with its restart; the time is that of a load.
    """

    brings_all = True

    def __init__(self, servers: Sequence[TritonControl], order: RestartOrder, limits: CheckLimits) -> None:
        self._servers = servers
        self._order = order
        self._limits = limits
        # Who was told to restart, and was not seen since: it is waited for, once. Others that are away may stay so.
        self._awaited: set[str] = set()
        self._in_vain: set[tuple[str, str, str]] = set()

    async def bring(self, server: TritonControl, staged: StagedModel) -> str | None:
        """Restarts the server unless it shows the mark of what is staged.

        Returns:
            None: a server that starts tells nobody what it could not load; what is not ready then, is not loaded.

        Raises:
            ServerUnavailable: it does not answer, or did not come back in time.
            NotRestarted: the order failed, another server is away, or it came back with other content.
        """
        if not await self._is_back(server):
            raise ServerUnavailable(server.address, "it does not answer")
        wanted = content_mark(staged.config) or ""
        shown = await self._marks(server, staged)
        if shown != {wanted}:
            await self._restart_once(server, staged.name, wanted)
            shown = await self._marks(server, staged)
        if shown == {wanted}:
            self._in_vain.discard((server.address, staged.name, wanted))
        elif others := shown - {wanted}:
            marks = ", ".join(sorted(mark[:12] or "no mark" for mark in others))
            raise NotRestarted(
                server.address,
                f"was restarted and serves other content of {staged.name} ({marks}) than is staged ({wanted[:12]}): "
                "is it the serving folder that it serves?",
            )
        return None

    async def release(self, server: TritonControl, model_name: str) -> None:
        """Restarts the server where it still serves a version of the model.

        Raises:
            ServerUnavailable: it does not answer, or did not come back in time.
            NotRestarted: as in `bring`, or it came back with the model.
        """
        if not await self._is_back(server):
            raise ServerUnavailable(server.address, "it does not answer")
        if await server.serves_any(model_name, self._limits.call_timeout_s):
            await self._restart_once(server, model_name, _NOTHING)
            if await server.serves_any(model_name, self._limits.call_timeout_s):
                raise NotRestarted(server.address, f"was restarted and still serves {model_name}")
        self._in_vain.discard((server.address, model_name, _NOTHING))

    async def _restart_once(self, server: TritonControl, model_name: str, wanted: str) -> None:
        purpose = server.address, model_name, wanted
        if purpose in self._in_vain:
            return
        await self._others_answer(server)
        logger.info("%s is restarted: it does not serve what is staged of %s", server.address, model_name)
        limit_s = self._limits.load_timeout_s
        deadline = asyncio.get_running_loop().time() + limit_s

        async def gone() -> bool:
            return not await server.is_live(self._limits.live_timeout_s)

        # It is looked for from now on: an order may return when the server is back, as `docker restart` does.
        going = asyncio.create_task(_until(gone, deadline))
        try:
            await self._order.restart(server.address)
            self._awaited.add(server.address)
            was_gone = await going
        finally:
            going.cancel()
        if not was_gone:
            self._awaited.discard(server.address)
            raise NotRestarted(server.address, f"was told to restart, and has not within {limit_s:.0f} s")
        if not await _until(lambda: self._answers(server, model_name), deadline):
            raise ServerUnavailable(server.address, f"did not come back within {limit_s:.0f} s of its restart")
        self._awaited.discard(server.address)
        self._in_vain.add(purpose)  # until it is seen to serve that
        logger.info("%s is back", server.address)

    async def _others_answer(self, server: TritonControl) -> None:
        for other in self._servers:
            if other is not server and not await self._is_back(other):
                reason = f"is not restarted while {other.address} does not answer"
                raise NotRestarted(server.address, reason)

    async def _is_back(self, server: TritonControl) -> bool:
        """Whether it answers; one that was told to restart has the time for it, once."""
        if await server.is_live(self._limits.live_timeout_s):
            self._awaited.discard(server.address)
            return True
        if server.address not in self._awaited:
            return False
        self._awaited.discard(server.address)
        deadline = asyncio.get_running_loop().time() + self._limits.load_timeout_s
        return await _until(lambda: server.is_live(self._limits.live_timeout_s), deadline)

    async def _answers(self, server: TritonControl, model_name: str) -> bool:
        """Whether it answers and has done with the model: a Triton listens when all models of its start are tried."""
        if not await server.is_live(self._limits.live_timeout_s):
            return False
        try:
            states = await server.states(model_name, self._limits.call_timeout_s)
        except ServerUnavailable:
            return False
        return all(state != "LOADING" for state, _ in states.values())

    async def _marks(self, server: TritonControl, staged: StagedModel) -> set[str]:
        """The marks of the versions that are ready there: one, unless part of a load failed."""
        timeout_s = self._limits.call_timeout_s
        marks: set[str] = set()
        for number in staged.versions:
            with contextlib.suppress(ModelNotReady):  # it is not served there: it shows nothing
                if await server.is_ready(staged.name, number, timeout_s):
                    marks.add(content_mark(await server.config(staged.name, number, timeout_s)) or "")
        return marks


async def _until(holds: Callable[[], Awaitable[bool]], deadline: float) -> bool:
    """Looks until something holds; False where it does not before the deadline, in seconds of the loop's clock."""
    try:
        async with asyncio.timeout_at(deadline):
            while not await holds():  # noqa: ASYNC110 - another machine's state, no event tells of it
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        return False
    return True
