"""Proto ↔ domain: validates while it reads; pure."""
