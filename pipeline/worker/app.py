"""The Faust app: group membership, assignment, flow control and commits around our own transport."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import faust
from faust.tables.manager import TableManager
from faust.types.events import EventT
from yarl import URL

from pipeline.adapters.kafka import client_options, tls_context
from pipeline.config import Settings
from pipeline.worker.membership import Membership
from pipeline.worker.transport import FETCHED_RECORDS_FIRST, ChunkConsumer, ChunkSchema, ChunkTransport

logger = logging.getLogger(__name__)

# How often the coordinator's fate is looked at. Faust never asks, and a worker whose coordinator failed would stay
# alive with nothing assigned.
_WATCH_S = 2.0

OnChunk = Callable[[ChunkConsumer, EventT[Any]], Awaitable[None]]


class WorkerApp(faust.App):
    """A Faust app that ends itself when its group coordinator failed for good.

    Attributes:
        membership: what the heartbeats say.
        open_lanes: is called in every generation, after the partitions are assigned and before they are read.
        on_progress: is called whenever something was committed or given away.
        gone: topics it reads that were deleted; it has no partitions of them, and takes those that come with a new one.
        on_failure: is told why this process cannot go on. Faust's own `crash` would take the consumer down first, and
            its lanes with it, before anybody could commit what they have.
    """

    membership: Membership
    gone: tuple[str, ...] = ()
    open_lanes: Callable[[ChunkConsumer, int], Awaitable[None]]
    on_progress: Callable[[], None]
    on_failure: Callable[[BaseException], None]

    async def on_start(self) -> None:
        """Starts the watch besides everything else."""
        await super().on_start()
        self.on_rebalance_complete.connect(self._open_lanes, weak=False)
        self.add_future(self._watch_coordinator())

    async def _open_lanes(self, *args: Any, **kwargs: Any) -> None:
        # Heartbeats run here, and another rebalance may begin meanwhile: the generation is compared on the way.
        generation = self.consumer_generation_id
        if generation <= 0:
            return
        try:
            await self.open_lanes(cast("ChunkConsumer", self.consumer), generation)
        except Exception as error:  # noqa: BLE001 - whatever it is, this process cannot answer anything
            self.on_failure(error)

    async def _watch_coordinator(self) -> None:
        while not self.should_stop:
            await self.sleep(_WATCH_S)
            try:
                if self._consumer is not None:
                    group = cast("ChunkConsumer", self._consumer).group
                    group.check()
                    self._note_gone(group.gone_topics() if self.consumer_generation_id > 0 else ())
            except Exception as error:  # noqa: BLE001 - whatever it is, this process cannot go on
                self.on_failure(error)
                return

    def _note_gone(self, topics: tuple[str, ...]) -> None:
        """Tells once what is waited for, and that the wait is over."""
        if topics and topics != self.gone:
            logger.warning("topics are gone: %s; `pipeline topics create` makes them; waiting", ", ".join(topics))
        elif self.gone and not topics:
            logger.info("topics are there again: %s", ", ".join(self.gone))
        self.gone = topics


class NoTables(TableManager):
    """The tables of an app that has none: Faust's own waits a second for modules to declare theirs."""

    async def on_start(self) -> None:
        """Starts at once."""
        await self._update_channels()
        await self.recovery.start()


def create_app(
    settings: Settings,
    on_chunk: OnChunk,
    open_lanes: Callable[[ChunkConsumer, int], Awaitable[None]],
    on_progress: Callable[[], None],
    on_failure: Callable[[BaseException], None],
    membership: Membership,
) -> WorkerApp:
    """The app that feeds `on_chunk` with the requests topic.

    Args:
        settings: where Kafka is, and the group.
        on_chunk: takes one event of `transport.ChunkConsumer`; it must not raise but for a bug, which ends the process.
        open_lanes: see `WorkerApp`.
        on_progress: see `WorkerApp`.
        on_failure: see `WorkerApp`.
        membership: is told of the heartbeats.
    """
    brokers = [URL(f"kafka://{address}") for address in str(settings.kafka.bootstrap_servers).split(",")]
    session_s = settings.kafka.session_timeout_s
    app = WorkerApp(
        settings.worker.group,
        broker=brokers,
        broker_credentials=_credentials(settings),
        store="memory://",
        datadir=str(settings.data_dir / "faust"),
        autodiscover=False,
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=False,
        # A bug ends the process, so that its records are read again; Faust's default goes on without them.
        agent_supervisor="mode.CrashingSupervisor",
        topic_allow_declare=False,
        topic_disable_leader=True,
        TableManager=NoTables,
        # Selects Faust's sticky assignor: with 0, every rebalance moves every partition away from its cache.
        table_standby_replicas=1,
        # In chunks: 16 of at most 256 records and 1 MiB wait before the agent.
        stream_buffer_maxsize=16,
        stream_wait_empty=True,
        broker_commit_interval=0.5,
        broker_max_poll_records=FETCHED_RECORDS_FIRST,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=session_s / 5,
        broker_rebalance_timeout=60.0,
        broker_request_timeout=max(40.0, session_s),
        consumer_max_fetch_size=settings.limits.record_bytes + (1 << 16),
        # A place that is not in the log is an error, not a jump: lanes are opened anew, and look the answers up.
        consumer_auto_offset_reset="none",
        # A topic that was deleted and made again is found within this, not within the minute of the default.
        consumer_metadata_max_age_ms=5_000,
        consumer_group_instance_id=settings.worker.instance_id,
    )
    app.open_lanes, app.on_progress, app.on_failure, app.membership = open_lanes, on_progress, on_failure, membership
    app.transport = ChunkTransport(brokers, app)
    raw: Any = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    topic = app.topic(settings.topic("requests"), schema=ChunkSchema(**raw))

    async def answer(stream: Any) -> None:
        consumer = cast("ChunkConsumer", app.consumer)
        consumer.buffer = stream.channel.queue
        async for event in stream.noack().events():
            await on_chunk(consumer, event)

    app.agent(topic, name="answer")(answer)
    return app


def _credentials(settings: Settings) -> Any:
    kafka = settings.kafka
    context = tls_context(kafka.tls, "kafka") if kafka.security_protocol.endswith("SSL") else None
    if kafka.sasl_mechanism:
        options = client_options(kafka)
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None
