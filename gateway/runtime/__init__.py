"""From settings to running processes, and the commands."""
