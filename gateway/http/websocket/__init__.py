"""One client's WebSocket: handshake, limits, frames, pings, drain."""
