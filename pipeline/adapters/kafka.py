"""How this package's Kafka clients are made, and what is said of a Kafka that does not answer, in one place."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from pipeline.config import KafkaSettings, TlsSettings
from pipeline.errors import SettingsError, TopicError

T = TypeVar("T")

# An end that was begun has this long before it is cut short: the slowest that is waited for, leaving a group, has 5 s.
_CANCEL_AGAIN_S = 6.0


def tls_context(tls: TlsSettings, name: str) -> ssl.SSLContext:
    """A verifying TLS context from the settings' files.

    Args:
        tls: the files; an unset one means the system's trust store, or no client certificate.
        name: the settings' section, for the message of an error.

    Raises:
        SettingsError: a file is missing or is not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
        if tls.cert_file:
            key_file = str(tls.key_file) if tls.key_file else None
            context.load_cert_chain(str(tls.cert_file), key_file)
    except OSError as error:
        files = ", ".join(str(Path(path)) for path in (tls.ca_file, tls.cert_file, tls.key_file) if path)
        raise SettingsError(f"settings {name}.tls: {files}: {error}") from None
    return context


def client_options(kafka: KafkaSettings) -> dict[str, Any]:
    """The arguments that every aiokafka client of ours is made with.

    Raises:
        SettingsError: no address is known, or TLS files cannot be read.
    """
    if not kafka.bootstrap_servers:
        raise SettingsError(
            "setting PIPELINE_KAFKA__BOOTSTRAP_SERVERS is not set and no local stack runs: start one with `pipeline up`"
        )
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.endswith("SSL"):
        options["ssl_context"] = tls_context(kafka.tls, "kafka")
    if kafka.sasl_mechanism:
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = kafka.sasl_password.get_secret_value() if kafka.sasl_password else None
    return options


async def all_partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """All partitions of a topic that exists, for a started consumer without a group; it has the first one assigned.

    Such a consumer learns a topic's partitions only once it has one of them; every topic has a first.
    """
    first = TopicPartition(topic, 0)
    consumer.assign([first])
    await consumer.end_offsets([first])
    return [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or {0})]


@asynccontextmanager
async def answered_in_time(bootstrap_servers: str | None, timeout_s: float) -> AsyncIterator[None]:
    """Limits a block's time together, and tells what Kafka does to it in one line.

    Raises:
        TopicError: Kafka does not answer, not in time, or refuses.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise TopicError(f"Kafka at {bootstrap_servers} gave no answer within {timeout_s:g} s") from None
    except KafkaConnectionError as error:
        raise TopicError(f"Kafka at {bootstrap_servers} does not answer") from error
    except (KafkaError, OSError) as error:
        raise TopicError(f"Kafka at {bootstrap_servers}: {error}") from error


async def cancel_until_ended(*tasks: asyncio.Task[Any], again_s: float = _CANCEL_AGAIN_S) -> None:
    """Cancels tasks that use aiokafka, again and again, and returns when all have ended, whatever with.

    Once is not enough: a client that is being closed waits for its own tasks and swallows `CancelledError` meanwhile
    (`Fetcher.close`, `AIOKafkaClient.close`, aiokafka 0.14), also one that was meant for whoever closes it. A loop that
    opens and closes clients would go on for ever.

    Args:
        tasks: any, ended ones too.
        again_s: seconds between two cancellations.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=again_s)


async def unless_stopped(stop: asyncio.Event, coming: Coroutine[Any, Any, T]) -> T | None:
    """What comes, or None where the stop came first; raises what it raises."""
    task, stopped = asyncio.create_task(coming), asyncio.create_task(stop.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        return task.result()
    await cancel_until_ended(task)
    return None
