"""HTTP and WebSocket requests that nodes and commands make."""
