"""Settings: `PIPELINE_` environment variables, then `pipeline.toml`, then the defaults here, each with its reason.

An address that is not set means "of the local stack"; one that is set is somebody's own server, and nothing local is
started for it. Only entry points load settings; everything else is given what it needs.
"""

import os
import shlex
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from string import Formatter
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pipeline.errors import SettingsError

MIB = 1 << 20
TOML_FILE = "pipeline.toml"
_PREFIX = "PIPELINE_"
# What is replaced in `watcher.restart_command`.
RESTART_FIELDS = ("instance", "address", "host", "port")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsSettings(_Section):
    """Files for TLS; unset means the system's own trust store, and no client certificate."""

    enabled: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class KafkaSettings(_Section):
    """Where Kafka is and how its topics are made."""

    bootstrap_servers: str | None = None
    topic_prefix: str = "inference."
    # Partitions bound the number of workers. 4 lets two workers share them evenly on one machine; production sets more.
    partitions: int = Field(default=4, ge=1, le=10_000)
    event_partitions: int = Field(default=4, ge=1, le=10_000)
    reply_partitions: int = Field(default=16, ge=1, le=10_000)
    # None: 3 where the cluster has three brokers or more (min.insync.replicas 2), else as many as it has.
    replication_factor: int | None = Field(default=None, ge=1)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    tls: TlsSettings = TlsSettings()
    # A dead worker's partitions wait this long: 10 s is the least that survives a busy host's pauses, and above the
    # 6 s below which a broker refuses (group.min.session.timeout.ms).
    session_timeout_s: float = Field(default=10.0, ge=6.0)


class RedisSettings(_Section):
    """The shared cache and result store; an empty url means none."""

    url: str | None = None
    password: SecretStr | None = None
    tls: TlsSettings = TlsSettings()


class ClickHouseSettings(_Section):
    """The inference log."""

    url: str | None = None
    user: str = "default"
    password: SecretStr = SecretStr("")
    database: str = Field(default="inference", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    tls: TlsSettings = TlsSettings()


class TritonSettings(_Section):
    """The gRPC addresses of the fleet."""

    urls: Annotated[tuple[str, ...], NoDecode] | None = None
    # Two, so that a restart or a crash of one never stops the answers.
    local_instances: int = Field(default=2, ge=1, le=8)
    tls: TlsSettings = TlsSettings()
    # What may wait in one process for the fleet, equal requests counted once; what finds no room is OVERLOADED at once
    # (docs/routing.md). Twice what a worker takes on by default (4,096, and inputs of 128 MiB): behind a worker the
    # backlog waits in Kafka, which costs nothing. Set below `worker.max_in_flight`, it is refused here instead.
    queue_max: int = Field(default=8192, ge=1)
    queue_max_bytes: int = Field(default=256 * MIB, ge=1)
    # Large tensors lie in memory that a Triton on this host sees too, and do not travel (docs/large-tensors.md). All of
    # a worker's together; each instance has an equal share. 128 MiB is two instances, four calls out to each, 8 MiB in
    # and 8 out. 0: everything travels over gRPC.
    shared_memory_bytes: int = Field(default=128 * MIB, ge=0)

    @field_validator("urls", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value


class CacheSettings(_Section):
    """The worker's in-memory cache, and the shared one behind it where `redis.url` gives one."""

    # 256 MiB is 200,000 answers of 1.3 kB, and small beside a worker's own 150 MB.
    max_bytes: int = Field(default=256 * MIB, ge=0)
    ttl_seconds: float = Field(default=3600.0, gt=0)
    # How long Redis may take for look-ups, from when they left. On the same host one takes 0.15 ms, 64 at once 3; on a
    # busy host, 1 in 100 of single ones takes 3-4 (measured). 5 ms leaves room for these and for a network, and is half
    # of what a small batch takes to compute. While most look-ups take longer, nobody asks.
    shared_budget_ms: float = Field(default=5.0, gt=0, le=10_000)
    # Answers that wait to be written behind. 32 MiB is 20,000 of 1.5 kB, a second of misses; it fills only while Redis
    # is slow, and what finds it full is not written.
    shared_queue_bytes: int = Field(default=32 * MIB, ge=0)


class WorkerSettings(_Section):
    """The worker: how much it takes on, and how long it tries."""

    group: str = Field(default="inference-worker", min_length=1)
    # 4,096 misses at the 10 ms of a small batch is 400,000/s, far beyond one core; a bound in number only guards
    # against a fleet that stopped answering. Bytes guard against large tensors, 16 of 8 MiB: until Kafka has confirmed
    # its result and its events, a request counts as four times its inputs.
    max_in_flight: int = Field(default=4096, ge=1)
    max_in_flight_bytes: int = Field(default=512 * MIB, ge=1)
    # One attempt at one instance.
    inference_timeout_ms: int = Field(default=20_000, ge=1)
    # A request without a deadline is tried this long while no instance answers, then INFERENCE_UNAVAILABLE.
    unavailable_timeout_ms: int = Field(default=30_000, ge=1)
    # Batches out to one instance at a time: past 4 a CPU instance only queues (measured on Triton 2.51).
    batches_in_flight: int = Field(default=4, ge=1)
    # Static membership: a worker that comes back under this name within the session gets its partitions back at once,
    # without a rebalance. Each worker needs a name of its own; one that leaves for good is missed for one session.
    instance_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,200}$")
    # Past the bounds a request waits in Kafka as long as it must; set, one that waited longer is answered OVERLOADED.
    overloaded_after_ms: int | None = Field(default=None, ge=1)
    metrics_port: int = Field(default=0, ge=0, le=65535)


class SinkSettings(_Section):
    """The sink: how much one insert carries."""

    # ClickHouse wants large inserts, analysts want fresh rows: 1 s is when a half-full batch goes.
    batch_rows_max: int = Field(default=50_000, ge=1)
    batch_bytes_max: int = Field(default=64 * MIB, ge=1)
    batch_wait_s: float = Field(default=1.0, gt=0)
    metrics_port: int = Field(default=0, ge=0, le=65535)


class WatcherSettings(_Section):
    """The watcher: how often it looks, and how long versions outlive their selection."""

    # Notices of the file system come sooner; this is for those that do not come. A look at 1,000 files takes 5 ms.
    interval_s: float = Field(default=5.0, gt=0, le=86_400)
    # A version in which nothing changed for so long is complete: copying programs pause for less. One with a manifest,
    # as `models publish` makes them, is taken at once.
    quiet_s: float = Field(default=3.0, ge=0, le=3600)
    # A version that nothing selects any more is served this long: requests that name it find another one meanwhile.
    drain_s: float = Field(default=30.0, ge=0, le=86_400)
    # How servers take what is new: by load orders, which stop nothing, or by restarts, one server after the other
    # (docs/models.md): for servers that take no orders, and for backends that cannot load in place.
    strategy: Literal["reload", "restart"] = "reload"
    # Restarts one server, without a shell; {instance}, {address}, {host} and {port} are replaced. Unset: the servers of
    # the local stack, which its supervisor starts again.
    restart_command: str | None = None
    # For the command alone: `docker restart` waits 10 s for a server to stop before it kills it. How long the server
    # may be away is the limit of a load.
    restart_timeout_s: float = Field(default=60.0, gt=0, le=3600)
    metrics_port: int = Field(default=0, ge=0, le=65535)

    @field_validator("restart_command")
    @classmethod
    def _is_template(cls, command: str | None) -> str | None:
        if command is None or not command.strip():
            return None
        try:
            words = shlex.split(command)
            fields = [field for word in words for _, field, _, _ in Formatter().parse(word) if field is not None]
        except ValueError as error:
            raise ValueError(f"{command!r} is no command: {error}") from None
        if unknown := [field for field in fields if field not in RESTART_FIELDS]:
            known = ", ".join(f"{{{name}}}" for name in RESTART_FIELDS)
            raise ValueError(f"{command!r} has the field {{{unknown[0]}}}: {known} are known, a brace itself is {{{{")
        return command


class LimitSettings(_Section):
    """Limits that several components must agree on."""

    record_bytes: int = Field(default=8 * MIB, ge=64 * 1024, le=256 * MIB)

    @property
    def event_record_bytes(self) -> int:
        """A line may carry a request's inputs and its result, binary ones as base64: 3 x the record limit + 1 MiB."""
        return 3 * self.record_bytes + MIB


class GatewaySettings(_Section):
    """The HTTP gateway."""

    host: str = "127.0.0.1"
    # 8080 unless it is asked for: then the next free one is taken where it is not (`pipeline status` shows which).
    port: int | None = Field(default=None, ge=0, le=65535)
    # Requests being read, waited for or answered at a time; past it 429. A waiting one costs 20 KB.
    max_in_flight: int = Field(default=1000, ge=1)
    # Bytes of bodies held at a time, inflated ones as they are inflated.
    max_in_flight_bytes: int = Field(default=256 * MIB, ge=1)
    # `Prefer: wait=N` and `?wait=N` are cut to this; a proxy before it usually gives up after 60 s.
    wait_max_s: float = Field(default=55.0, gt=0, le=3600)
    # A body that takes longer is given up: 8 MiB in 30 s is 2 Mbit/s.
    body_timeout_s: float = Field(default=30.0, gt=0)
    # Server-sent events: a comment so often, for proxies that cut what is silent.
    heartbeat_s: float = Field(default=15.0, gt=0)
    # How long a stop waits for what is in flight.
    drain_s: float = Field(default=10.0, ge=0)
    # Results in Redis live so long; older ones are found in ClickHouse.
    result_ttl_s: float = Field(default=3600.0, ge=1)
    # Whose X-Forwarded-For is believed: networks of proxies, CIDR.
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    # API keys are needed: None: unless `host` is a loopback address.
    require_keys: bool | None = None
    # A line for each request, answered well or not. Off: a line costs 40 us, beside the 500 that a small answer takes,
    # and the metrics count what there is to count.
    access_log: bool = False


class LogSettings(_Section):
    """What the processes that go on write to standard error (docs/delivery.md)."""

    # text: for people. json: an object a line, for programs.
    format: Literal["text", "json"] = "text"
    # The least that is written. INFO: some lines a minute, and one for each request that failed; DEBUG is for looking
    # for mistakes, and the libraries write with it.
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("format", mode="before")
    @classmethod
    def _is_format(cls, value: Any) -> Any:
        return _one_of(value, str(value).lower(), ("text", "json"))

    @field_validator("level", mode="before")
    @classmethod
    def _is_level(cls, value: Any) -> Any:
        return _one_of(value, str(value).upper(), ("DEBUG", "INFO", "WARNING", "ERROR"))


def _one_of(value: Any, word: str, known: tuple[str, ...]) -> str:
    if word not in known:
        raise ValueError(f"{value!r:.80} was given, one of {', '.join(known)} was expected")
    return word


class RetentionSettings(_Section):
    """How long rows live in ClickHouse, in days."""

    requests_days: float = Field(default=30.0, gt=0)
    events_days: float = Field(default=7.0, gt=0)


class WebhookSettings(_Section):
    """Callbacks: signing secrets by tenant ("" for none), where they may go, and when they are tried again."""

    # The first signs and is the current one; one behind it signs too, until receivers have replaced it.
    secrets: dict[str, tuple[SecretStr, ...]] = Field(default_factory=dict)
    # Networks that are not public and may be called all the same.
    allowed_networks: tuple[IPvAnyNetwork, ...] = ()
    allow_http: bool = False
    # One attempt, connecting included (Standard Webhooks advises 15-30 s).
    timeout_s: float = Field(default=15.0, gt=0, le=300)
    # Calls out at a time, and to one host: a slow receiver never has all of them.
    max_in_flight: int = Field(default=256, ge=1)
    max_in_flight_per_host: int = Field(default=8, ge=1)
    # Bodies of callbacks in hand: 8 of 8 MiB. One host has a quarter of it at most, or one body.
    max_in_flight_bytes: int = Field(default=64 * MIB, ge=1)
    # Waits between attempts, 75 hours in all (Standard Webhooks' example).
    retry_delays_s: tuple[Annotated[float, Field(gt=0)], ...] = (
        5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400,
    )  # fmt: skip
    # How long records stay in each delay tier, a topic each, named after it: six make every wait above out of four
    # stays or fewer, jitter aside. What waits in a tier that is not in this list any more is not read.
    tiers_s: tuple[Annotated[float, Field(ge=0.001, le=86_400)], ...] = (5, 30, 300, 1800, 7200, 21_600)
    metrics_port: int = Field(default=0, ge=0, le=65535)

    @field_validator("tiers_s")
    @classmethod
    def _is_ascending(cls, tiers_s: tuple[float, ...]) -> tuple[float, ...]:
        if not tiers_s or any(later < sooner + 0.001 for sooner, later in pairwise(tiers_s)):
            raise ValueError(f"{list(tiers_s)} is no list of seconds, the shortest first and each longer than the last")
        return tiers_s


class Settings(BaseSettings):
    """All settings. `load_settings` reads them; `Settings(...)` alone is for tests."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        toml_file=TOML_FILE,
        extra="forbid",
        frozen=True,
    )

    data_dir: Path = Path(".pipeline")
    model_repository: Path = Path("model_repository")
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    triton: TritonSettings = TritonSettings()
    cache: CacheSettings = CacheSettings()
    worker: WorkerSettings = WorkerSettings()
    sink: SinkSettings = SinkSettings()
    watcher: WatcherSettings = WatcherSettings()
    limits: LimitSettings = LimitSettings()
    gateway: GatewaySettings = GatewaySettings()
    retention: RetentionSettings = RetentionSettings()
    webhooks: WebhookSettings = WebhookSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then `pipeline.toml`."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))

    def topic(self, name: str) -> str:
        """A topic's full name: `requests` is `inference.requests` by default."""
        return f"{self.kafka.topic_prefix}{name}"


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: one line that names the wrong setting, never its secret value.
    """
    _refuse_misspelt(os.environ)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = [str(part) for part in first["loc"]]
        name = _PREFIX + "__".join(path).upper()
        raise SettingsError(f"setting {name} ({'.'.join(path)} in {TOML_FILE}): {first['msg']}") from None
    except TOMLDecodeError as error:
        raise SettingsError(f"{TOML_FILE} cannot be read: {error}") from None


def _refuse_misspelt(environ: Mapping[str, str]) -> None:
    """A misspelt variable must not be a silent default; others with our prefix may be somebody else's (Kubernetes)."""
    known = list(Settings.model_fields)
    for name in environ:
        if not name.startswith(_PREFIX):
            continue
        section, nested, _ = name.removeprefix(_PREFIX).lower().partition("__")
        near = get_close_matches(section, known, n=1, cutoff=0.8)
        if section not in known and (nested or near):
            meant = f", did you mean {_PREFIX}{near[0].upper()}" if near else ""
            raise SettingsError(f"{name} is no setting{meant}; all of them are in pipeline/config.py")
