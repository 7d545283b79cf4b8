"""A Redis server of our own, for who configured none."""
