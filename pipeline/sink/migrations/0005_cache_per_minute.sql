-- How often the cache helped, minute by minute: of the requests that asked it for an answer, the share that had one.
-- A hit rate is NULL where none asked: all bypassed it, or failed before they came so far.
CREATE VIEW IF NOT EXISTS cache_per_minute AS
SELECT
    minute,
    model_name,
    model_version,
    request_count AS requests,
    hits,
    coalesced,
    misses,
    refreshes,
    bypassed,
    hits / nullIf(hits + misses + coalesced + refreshes, 0) AS hit_rate
FROM
(
    SELECT
        minute,
        model_name,
        model_version,
        sum(requests) AS request_count,
        sumIf(requests, cache_status = 'hit') AS hits,
        sumIf(requests, cache_status = 'coalesced') AS coalesced,
        sumIf(requests, cache_status = 'miss') AS misses,
        sumIf(requests, cache_status = 'refresh') AS refreshes,
        sumIf(requests, cache_status = 'bypass') AS bypassed
    FROM requests_per_minute
    GROUP BY minute, model_name, model_version
);
