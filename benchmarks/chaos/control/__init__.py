"""Registry and routers under faults, and a checker that knows what routers may never answer.

The truth is read from Postgres, around the services: the list of all changes, with the time of each. What callers were told
is held against it, with real-time intervals: an answer counts from when its call was sent until it came.
"""
