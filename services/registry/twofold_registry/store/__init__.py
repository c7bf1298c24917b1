"""Postgres, the truth: one method, one transaction."""
