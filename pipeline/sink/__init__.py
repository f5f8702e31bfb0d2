"""The events topic -> rows in ClickHouse, one per event and one per request that ended.

`run.run_sink` is the process, `sink.EventSink` the flow of batches, `lane.Lane` one partition's buffer,
`delivering.Deliverer` what performs the steps of a delivery, `log_tables.LogTables` what it asks of ClickHouse,
`self_check` and `audit` what compares rows with offsets, `migrations` the tables. What makes a crash harmless is
decided by the core: `core/event_batch.py` (rows, tokens, suspects), `core/sink_plan.py` (what is committed, where a
successor goes on), `core/sink_delivery.py` (the steps of one batch).
"""
