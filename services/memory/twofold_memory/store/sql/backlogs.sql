-- name: backlogs
-- $1 how much is counted at most; each part reads the index of what is left, or a table that holds nothing else.
SELECT
    (SELECT count(*) FROM (SELECT FROM memory.dead_letters WHERE resolved_at IS NULL LIMIT $1) d) AS dead_letters,
    (SELECT now() - min(created_at) FROM memory.dead_letters WHERE resolved_at IS NULL) AS dead_letters_age,
    (SELECT count(*) FROM (SELECT FROM memory.window_purges WHERE NOT done LIMIT $1) p) AS window_purges,
    (SELECT now() - min(asked_at) FROM memory.window_purges WHERE NOT done) AS window_purges_age,
    (SELECT count(*) FROM (SELECT FROM memory.search_pending LIMIT $1) s) AS search,
    (SELECT count(*) FROM (SELECT FROM memory.open_turns LIMIT $1) o) AS open_turns;
