"""Redis commands of the `snorky` command line, by redis-py."""
