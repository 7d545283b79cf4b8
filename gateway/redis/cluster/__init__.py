"""Redis Cluster: where slots are, and how commands and publications get there."""
