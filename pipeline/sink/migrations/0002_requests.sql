-- One row per request that ended, sorted for "this model, this time". Settings and codecs as in 0001_events.sql.
CREATE TABLE IF NOT EXISTS requests
(
    request_id String CODEC(ZSTD(1)),
    tenant LowCardinality(String),
    model_name LowCardinality(String),
    model_version LowCardinality(String),
    status LowCardinality(String),
    error_code LowCardinality(String),
    cache_status LowCardinality(String),
    cache_key String CODEC(ZSTD(1)),
    source_ip IPv6 CODEC(ZSTD(1)),
    requested_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    completed_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    queue_us UInt64 CODEC(T64, ZSTD(1)),
    inference_us UInt64 CODEC(T64, ZSTD(1)),
    total_us UInt64 CODEC(T64, ZSTD(1)),
    instance LowCardinality(String),
    worker LowCardinality(String),
    input_bytes UInt64 CODEC(T64, ZSTD(1)),
    output_bytes UInt64 CODEC(T64, ZSTD(1)),
    inputs String CODEC(ZSTD(1)),
    outputs String CODEC(ZSTD(1)),
    parameters String CODEC(ZSTD(1)),
    result String CODEC(ZSTD(1)), -- the exact record: JSON, raw tensor bytes behind it where it has any
    expires_at DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    batch LowCardinality(String),
    INDEX request_id_filter request_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX cache_key_filter cache_key TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX requested_at_range requested_at TYPE minmax GRANULARITY 1,
    INDEX completed_at_range completed_at TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(expires_at)
ORDER BY (model_name, completed_at)
TTL expires_at
SETTINGS ttl_only_drop_parts = 1, merge_with_ttl_timeout = 3600, non_replicated_deduplication_window = 10000;
