"""The table, and the goals."""
