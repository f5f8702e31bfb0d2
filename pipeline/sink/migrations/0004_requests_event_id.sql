-- The id of the event that ended the request, so that a row of `requests` is found by what makes it unique. Looking in
-- `events` alone would not do: its rows expire sooner, and a sink may die between the two tables.
ALTER TABLE requests ADD COLUMN IF NOT EXISTS event_id UUID CODEC(NONE);

ALTER TABLE requests ADD INDEX IF NOT EXISTS event_id_filter event_id TYPE bloom_filter(0.001) GRANULARITY 1;
