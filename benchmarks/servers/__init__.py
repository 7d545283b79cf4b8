"""The servers that are measured, and how each is started."""
