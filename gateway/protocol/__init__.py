"""Bytes to values and back: JSON, MessagePack, envelopes, WebSocket frames, publications, channel names. Pure."""
