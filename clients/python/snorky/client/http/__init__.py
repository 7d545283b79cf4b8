"""Calls to a gateway's private port over HTTP, with the standard library only."""
