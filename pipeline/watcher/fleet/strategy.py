"""Which way the fleet is updated, by the settings: `watcher.strategy`."""

from collections.abc import Callable, Sequence

from pipeline.adapters.triton import instance_names
from pipeline.config import Settings
from pipeline.errors import SettingsError
from pipeline.stack.restart import serves
from pipeline.stack.state import read_running
from pipeline.watcher.fleet.check import CheckLimits, ServerUpdate
from pipeline.watcher.fleet.reload import Reload
from pipeline.watcher.fleet.restart import Restart, RestartOrder
from pipeline.watcher.fleet.restart_orders import LocalRestart, RestartCommand
from pipeline.watcher.fleet.triton_control import TritonControl

MakeUpdate = Callable[[Sequence[TritonControl], CheckLimits], ServerUpdate]


def by_reload(_: Sequence[TritonControl], limits: CheckLimits) -> ServerUpdate:
    """Servers load what is new when they are told to."""
    return Reload(limits)


def chosen_update(settings: Settings) -> MakeUpdate:
    """What makes the fleet's update.

    Raises:
        SettingsError: servers are to be restarted, and nobody is known who could do it.
    """
    if settings.watcher.strategy == "reload":
        return by_reload
    order = _restart_order(settings)
    return lambda servers, limits: Restart(servers, order, limits)


def _restart_order(settings: Settings) -> RestartOrder:
    urls, watcher = settings.triton.urls or (), settings.watcher
    if watcher.restart_command is not None:
        names = dict(zip(urls, instance_names(urls), strict=True))
        return RestartCommand(watcher.restart_command, names, watcher.restart_timeout_s)
    running = read_running(settings.data_dir)
    if strange := [url for url in urls if not serves(running, url)]:
        raise SettingsError(
            f"setting PIPELINE_WATCHER__STRATEGY is 'restart', and no local stack in {settings.data_dir} runs the "
            f"Triton at {strange[0]}: PIPELINE_WATCHER__RESTART_COMMAND has to say how it is restarted, for example "
            "'docker restart {instance}'"
        )
    return LocalRestart(settings.data_dir)
