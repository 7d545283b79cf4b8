"""Listening sockets, and what is counted when a connection is accepted."""
