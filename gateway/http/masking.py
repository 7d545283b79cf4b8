"""Undoing a client's masking by aiohttp's compiled XOR: 0.1 us a KiB against 3 us in pure Python.

Beside takeover.py the only place that touches aiohttp's inner parts; held by tests/unit/test_masking.py.
"""

from aiohttp._websocket.helpers import websocket_mask

__all__ = ["unmask"]


def unmask(data: bytes, mask: bytes) -> bytes:
    """Undo the masking of RFC 6455 5.3. mask: 4 bytes."""
    buffer = bytearray(data)
    websocket_mask(mask, buffer)
    return bytes(buffer)
