-- Nothing to change: what the listings of permissions need, 0001 and 0003 have made.
SELECT;
