"""Requests of backends by HTTP: who may send them, and what they get."""
