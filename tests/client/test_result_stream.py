"""The stream of results: filters, the first of each id, and what is no result."""

import logging

import pytest

from pipeline.client import KafkaUnavailable
from pipeline.client.pending import ResultRecord
from tests.client.scripted_topics import ScriptedClient, failed_record, result_record


async def found(*records: ResultRecord, **wanted: str) -> list[str]:
    """Ids and versions of what the stream yields of these records, until the connection is lost."""
    client = ScriptedClient(lambda record, partition: [])
    for record in records:
        client.stream.put_nowait(record)
    client.stream.put_nowait(KafkaUnavailable("the end"))
    ids: list[str] = []

    async def follow() -> None:
        async for result in client.results(**wanted):  # type: ignore[arg-type]
            ids.append(f"{result.id}/{result.model_version}")  # noqa: PERF401 - kept though the stream ends in an error

    with pytest.raises(KafkaUnavailable, match="the end"):
        await follow()
    return ids


def of_tenant(record: ResultRecord, tenant: str) -> ResultRecord:
    """The record as the worker writes it for a tenant."""
    return record._replace(headers=[*record.headers, ("tenant", tenant.encode())])


async def test_first_result_of_an_id_is_the_only_one() -> None:
    """A later result of the same id in the same partition is passed by; elsewhere it is another request's."""
    records = [result_record("a", 0, model_version=v) for v in ("1", "2")] + [result_record("a", 1, model_version="3")]
    assert await found(*records) == ["a/1", "a/3"]


async def test_later_result_does_not_show_under_a_filter() -> None:
    """Where the first result is not in the state that is asked for, a second one with it is not the answer."""
    assert await found(failed_record("a", 0, "INTERNAL"), result_record("a", 0), status="succeeded") == []


async def test_tenants_are_told_apart() -> None:
    """One id of two tenants is two requests; a filter names one, or those without any."""
    records = [result_record("a", 0), of_tenant(result_record("a", 0, model_version="3"), "acme")]
    assert await found(*records) == ["a/2", "a/3"]
    assert await found(*records, tenant="acme") == ["a/3"]
    assert await found(*records, tenant="") == ["a/2"]


async def test_models_states_and_ids_are_filtered() -> None:
    """Each filter leaves what it names."""
    records = [
        result_record("a", 0),
        result_record("b", 0, model_name="sentences"),
        failed_record("c", 0, "MODEL_ERROR"),
    ]
    assert await found(*records, model_name="sentences") == ["b/2"]
    assert await found(*records, status="failed") == ["c/2"]
    assert await found(*records, id="a") == ["a/2"]


async def test_what_is_no_result_is_logged_and_passed_by(caplog: pytest.LogCaptureFixture) -> None:
    """A foreign record on the topic stops nobody."""
    foreign = result_record("a", 3)._replace(value=b"no result")
    with caplog.at_level(logging.WARNING):
        assert await found(foreign, result_record("b", 0)) == ["b/2"]
    assert "partition 3, offset 0: no result record" in caplog.text
