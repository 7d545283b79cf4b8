"""Channels: to hear what is published, and to publish."""
