"""Requests for a SockJS session of another node."""
