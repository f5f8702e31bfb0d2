"""Fixtures of the adapters' live tests."""

from tests.sink.conftest import bootstrap_servers, clickhouse_url, sink_servers

__all__ = ["bootstrap_servers", "clickhouse_url", "sink_servers"]
