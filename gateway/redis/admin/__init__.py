"""What the commands of `snorky` ask of Redis, by redis-py."""
