-- Requests per minute, kept as mergeable states by a materialized view, read through a finalized view.
--
-- The target drops its rows on the same day as `requests` does: same partitions, same TTL, and toDate(expires_at) in
-- the sorting key, so that states of different expiry days never merge.
-- quantilesExact: a state holds every duration (8 bytes per request, beside some hundreds in its base row), and in
-- return the figures equal those of the base table, whatever was merged when. A digest would only come near.
CREATE TABLE IF NOT EXISTS requests_per_minute_states
(
    minute DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    model_name LowCardinality(String),
    model_version LowCardinality(String),
    status LowCardinality(String),
    cache_status LowCardinality(String),
    requests SimpleAggregateFunction(sum, UInt64),
    total_us AggregateFunction(quantilesExact(0.5, 0.95, 0.99), UInt64) CODEC(ZSTD(1)),
    input_bytes SimpleAggregateFunction(sum, UInt64),
    output_bytes SimpleAggregateFunction(sum, UInt64),
    expires_at SimpleAggregateFunction(max, DateTime('UTC'))
)
ENGINE = AggregatingMergeTree
PARTITION BY toDate(expires_at)
ORDER BY (model_name, minute, model_version, status, cache_status, toDate(expires_at))
TTL expires_at
SETTINGS ttl_only_drop_parts = 1, merge_with_ttl_timeout = 3600, non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_minutes TO requests_per_minute_states AS
SELECT
    toStartOfMinute(toDateTime(r.completed_at, 'UTC')) AS minute,
    r.model_name AS model_name,
    r.model_version AS model_version,
    r.status AS status,
    r.cache_status AS cache_status,
    count() AS requests,
    quantilesExactState(0.5, 0.95, 0.99)(r.total_us) AS total_us,
    sum(r.input_bytes) AS input_bytes,
    sum(r.output_bytes) AS output_bytes,
    max(r.expires_at) AS expires_at
FROM requests AS r
GROUP BY minute, model_name, model_version, status, cache_status, toDate(r.expires_at);

CREATE VIEW IF NOT EXISTS requests_per_minute AS
SELECT
    minute,
    model_name,
    model_version,
    status,
    cache_status,
    request_count AS requests,
    quantiles_us[1] AS p50_us,
    quantiles_us[2] AS p95_us,
    quantiles_us[3] AS p99_us,
    input_sum AS input_bytes,
    output_sum AS output_bytes
FROM
(
    SELECT
        minute,
        model_name,
        model_version,
        status,
        cache_status,
        sum(requests) AS request_count,
        quantilesExactMerge(0.5, 0.95, 0.99)(total_us) AS quantiles_us,
        sum(input_bytes) AS input_sum,
        sum(output_bytes) AS output_sum
    FROM requests_per_minute_states
    GROUP BY minute, model_name, model_version, status, cache_status
);
