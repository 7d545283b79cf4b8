"""Benchmarks of the gateway: `python -m benchmarks` prints one table. README.md in this folder explains it."""
