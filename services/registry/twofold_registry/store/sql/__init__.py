"""Named SQL statements of the registry."""
