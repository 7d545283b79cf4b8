"""Positions and streams of channels, and the function library for publishers."""
