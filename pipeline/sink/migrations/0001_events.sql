-- One row per event. Names carry no database: the runner's connection chooses it.
--
-- Sorting key: analysts ask by model, kind and time. A request's own events are found by the Bloom filter on
-- request_id: 0.001 false positives cost 14 bits per distinct value and granule, and skip 999 granules of 1,000.
-- Codecs: times that are nearly in order pay with DoubleDelta, small integers with T64, JSON with ZSTD.
-- non_replicated_deduplication_window: without it this engine remembers no inserted part, and a repeated insert is a
-- second copy. 10,000 parts are 2.7 hours of one partition at one batch per second, and some 100 bytes each on disk.
-- ttl_only_drop_parts: a partition is one day of expiry, so whole parts go, and no row is ever rewritten.
CREATE TABLE IF NOT EXISTS events
(
    event_id UUID CODEC(NONE), -- random by nature: compressing it costs time and saves nothing
    event_type LowCardinality(String),
    occurred_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    request_id String CODEC(ZSTD(1)),
    tenant LowCardinality(String),
    model_name LowCardinality(String),
    model_version LowCardinality(String),
    cache_status LowCardinality(String),
    instance LowCardinality(String),
    worker LowCardinality(String),
    source_ip IPv6 CODEC(ZSTD(1)),
    duration_us UInt64 CODEC(T64, ZSTD(1)),
    attributes String CODEC(ZSTD(1)),
    expires_at DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    batch LowCardinality(String), -- the token of the insert that brought the row
    INDEX event_id_filter event_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX request_id_filter request_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX occurred_at_range occurred_at TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(expires_at)
ORDER BY (model_name, event_type, occurred_at)
TTL expires_at
SETTINGS ttl_only_drop_parts = 1, merge_with_ttl_timeout = 3600, non_replicated_deduplication_window = 10000;
