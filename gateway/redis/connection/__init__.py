"""Connections to Redis: protocol, reconnection, pipelines, scripts, Sentinel."""
