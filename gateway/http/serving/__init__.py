"""Listening sockets, and the count of accepted connections."""
