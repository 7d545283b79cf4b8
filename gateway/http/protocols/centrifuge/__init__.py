"""The Centrifuge protocol, version 2, as JSON over WebSocket: for centrifuge-js and the other Centrifugo clients."""
