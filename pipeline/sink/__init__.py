"""The events topic -> rows in ClickHouse, one per event and one per request that ended.

`run.run_sink` is the process, `sink.EventSink` the flow of batches, `lane.Lane` one partition's buffer, `commit_plan`
what makes a crash harmless, `migrations` the tables. Rows and tokens are made by the core: `core/event_batch.py`.
"""
