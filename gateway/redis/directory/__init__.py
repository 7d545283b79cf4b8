"""Leases, rosters, names, direct messages and tokens, and their cleanup after a node died."""
