"""Benchmarks of the gateway: `python -m benchmarks` prints one table. How to read it: README.md beside this file."""
