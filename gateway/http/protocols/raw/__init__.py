"""Plain WebSocket: each frame is a message of one channel, without an envelope, for wscat and small devices."""
