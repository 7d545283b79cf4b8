"""Redis: everything that knows it."""
