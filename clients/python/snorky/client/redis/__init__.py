"""Publishing through Redis; needs redis-py (snorky-client[redis])."""
