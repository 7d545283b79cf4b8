"""Removes a client's masking with aiohttp's compiled XOR: 0.1 us per KiB instead of 3 us in pure Python.

Only this module and aiohttp_internals.py use aiohttp's internals; tests/unit/http/websocket/test_masking.py checks it.
"""

from aiohttp._websocket.helpers import websocket_mask

__all__ = ["unmask"]


def unmask(data: bytes, mask: bytes) -> bytes:
    """Remove the masking of RFC 6455 5.3. mask: 4 bytes."""
    buffer = bytearray(data)
    websocket_mask(mask, buffer)
    return bytes(buffer)
