"""Pusher Channels, protocol 7: for pusher-js, Laravel Echo, and the libraries of backends."""
