"""A private Redis server, used if none is configured."""
