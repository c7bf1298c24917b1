"""Faults under load, and a checker that knows what must never happen.

The clients' own records (when each call was sent and answered, and what the answer said) are held against each other and
against what Postgres holds at the end.
"""
