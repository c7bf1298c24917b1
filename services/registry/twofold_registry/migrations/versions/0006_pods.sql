SELECT;  -- Nothing yet.
