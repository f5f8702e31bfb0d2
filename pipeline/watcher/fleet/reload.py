"""Servers that load and unload models when they are told to (`--model-control-mode=explicit`): nothing stops for it."""

import logging

from pipeline.errors import ServerUnavailable
from pipeline.watcher.fleet.check import CheckLimits
from pipeline.watcher.fleet.triton_control import ModelControlOff, ModelLoadFailed, TritonControl
from pipeline.watcher.serving.folder import StagedModel

logger = logging.getLogger(__name__)


class Reload:
    """Brings servers to what is staged by load orders.

    Args:
        limits: how long a load, and an unload, may take.
    """

    brings_all = False

    def __init__(self, limits: CheckLimits) -> None:
        self._limits = limits

    async def bring(self, server: TritonControl, staged: StagedModel) -> str | None:
        """Loads the model; what has not changed costs 2 ms.

        Returns:
            What the server said against it; None also where somebody else decides what it loads.

        Raises:
            ServerUnavailable: it does not answer at all.
        """
        limit_s = self._limits.load_timeout_s
        try:
            await server.load(staged.name, limit_s)
        except ModelControlOff as error:
            # Somebody else decides what this server loads; what is ready there is judged like the rest.
            logger.info("%s loads by itself: %s", server.address, error.reason)
        except ModelLoadFailed as error:
            return error.reason
        except ServerUnavailable as error:
            if not await server.is_live(self._limits.live_timeout_s):
                raise
            return f"the load did not end in {limit_s:.0f} s: {error.reason}"
        return None

    async def release(self, server: TritonControl, model_name: str) -> None:
        """Unloads the model.

        Raises:
            InferenceServerError: it keeps what it has.
        """
        await server.unload(model_name, self._limits.call_timeout_s)
