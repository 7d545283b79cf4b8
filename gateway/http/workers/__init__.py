"""The private port of several worker processes."""
