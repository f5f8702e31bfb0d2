"""What the sink counts, on a Prometheus registry of its caller's."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# An insert takes 0.05-2 s (measured for 5,000 to 50,000 rows); 60 s is where it is given up.
_INSERT_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class SinkMetrics:
    """The sink's collectors.

    Attributes:
        rows: rows inserted, by `table`; a repeated insert that ClickHouse dropped counts again.
        batches: batches inserted and committed.
        insert_seconds: one batch into all its tables, successful tries only.
        lag_records: records between the committed offset and the end of the log, by `partition`. Grows while
            ClickHouse is down; cure: see `retries` and the log.
        retries: inserts that are tried again. Anything but a few a day means that ClickHouse struggles.
        dead_lines: lines that are no events, or whose rows ClickHouse refused, sent to the dead letters. Cause: a
            foreign or newer writer, or a changed table.
        rows_looked_up: rows looked up by id before their insert, by `table`: after a worker's crash, or without the
            header `generation`. Always: a writer lacks that header; give it one.
        rows_left_out: those that were there already.
        rows_wrong: rows that are `missing` or `double` (`kind`) when batches of the last minute are counted again, by
            `table`. Anything but 0: run `pipeline doctor`.
        minutes_rebuilt: minutes of the view made anew from `requests`, after ClickHouse was killed.
    """

    rows: Counter
    batches: Counter
    insert_seconds: Histogram
    lag_records: Gauge
    retries: Counter
    dead_lines: Counter
    rows_looked_up: Counter
    rows_left_out: Counter
    rows_wrong: Counter
    minutes_rebuilt: Counter

    @classmethod
    def on(cls, registry: CollectorRegistry) -> "SinkMetrics":
        """The collectors, registered.

        Raises:
            ValueError: the registry has them already.
        """
        return cls(
            rows=Counter("inference_sink_rows", "Rows inserted", ["table"], registry=registry),
            batches=Counter("inference_sink_batches", "Batches inserted and committed", registry=registry),
            insert_seconds=Histogram(
                "inference_sink_insert_seconds",
                "One batch into all its tables",
                buckets=_INSERT_BUCKETS_S,
                registry=registry,
            ),
            lag_records=Gauge(
                "inference_sink_lag_records",
                "Records between the committed offset and the end of the log",
                ["partition"],
                registry=registry,
            ),
            retries=Counter("inference_sink_retries", "Inserts that are tried again", registry=registry),
            dead_lines=Counter("inference_sink_dead_lines", "Lines sent to the dead letters", registry=registry),
            rows_looked_up=Counter(
                "inference_sink_rows_looked_up", "Rows looked up before their insert", ["table"], registry=registry
            ),
            rows_left_out=Counter(
                "inference_sink_rows_left_out", "Rows that were there already", ["table"], registry=registry
            ),
            rows_wrong=Counter(
                "inference_sink_rows_wrong",
                "Rows missing or double when counted again",
                ["table", "kind"],
                registry=registry,
            ),
            minutes_rebuilt=Counter(
                "inference_sink_minutes_rebuilt", "Minutes of the view made anew from requests", registry=registry
            ),
        )
