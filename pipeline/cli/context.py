"""The settings a command works with: what is configured, and for the rest the local stack that runs."""

import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.cli.log_format import Context, JsonFormat, TextFormat, nobody
from pipeline.cli.repeated_lines import RepeatedLines
from pipeline.config import LogSettings, Settings, load_settings

if TYPE_CHECKING:
    from pipeline.stack import Endpoints


def effective_settings() -> Settings:
    """The settings, with unset addresses filled from the stack that runs in the data folder.

    Raises:
        SettingsError: a wrong setting.
    """
    from pipeline.stack.state import read_running

    settings = load_settings()
    running = read_running(settings.data_dir)
    return settings if running is None else with_endpoints(settings, running.endpoints)


def with_endpoints(settings: Settings, endpoints: "Endpoints") -> Settings:
    """The settings with unset addresses filled; what somebody configured stays."""

    def filled(section: str, name: str, address: Any) -> Any:
        current = getattr(settings, section)
        if getattr(current, name) is not None or not address:
            return current
        return current.model_copy(update={name: address})

    return settings.model_copy(
        update={
            "kafka": filled("kafka", "bootstrap_servers", endpoints.kafka),
            "redis": filled("redis", "url", endpoints.redis),
            "clickhouse": filled("clickhouse", "url", endpoints.clickhouse),
            "triton": filled("triton", "urls", tuple(one.grpc for one in endpoints.triton)),
        }
    )


def child_environment(settings: Settings) -> dict[str, str]:
    """The `PIPELINE_` variables that give a child process these addresses and folders."""
    variables = {
        "PIPELINE_DATA_DIR": str(settings.data_dir.absolute()),
        "PIPELINE_MODEL_REPOSITORY": str(settings.model_repository.absolute()),
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "PIPELINE_REDIS__URL": settings.redis.url,
        "PIPELINE_CLICKHOUSE__URL": settings.clickhouse.url,
        "PIPELINE_TRITON__URLS": ",".join(settings.triton.urls or ()),
    }
    return {name: text for name, text in variables.items() if text}


def quiet_libraries() -> None:
    """Keeps the Kafka client's own lines out of a command's output: what matters comes back as an error."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def log_to_stderr(settings: LogSettings, context: Context = nobody) -> None:
    """Logging of a process that runs until it is stopped: one line per event, with its time.

    Servers inside of it (uvicorn, Faust) write through the same handler, and so does what ends it by mistake.

    Args:
        settings: from which level on, and in which form.
        context: the request that the writer of a line works on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormat(context) if settings.format == "json" else TextFormat(context))
    handler.addFilter(RepeatedLines("aiokafka"))
    logging.basicConfig(handlers=[handler], level=settings.level)
    # A lost connection is told by our own lines, too; the client repeats it several times a second.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("pipeline").critical("ended by a mistake", exc_info=(kind, error, trace))
