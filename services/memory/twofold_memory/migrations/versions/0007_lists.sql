-- Lists that had no index, and an index that nobody needs any more.

-- Dead letters that somebody has dealt with stay, and are listed with the others.
CREATE INDEX dead_letters_of_all_times ON memory.dead_letters (created_at, workspace_id, thread_id, turn_id, payload_hash);

-- Each kept answer that is about a conversation says so.
DROP INDEX memory.requests_of_no_thread;
