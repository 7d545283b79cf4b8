"""Slots: which of a Cluster's 16,384 slots a key is in (Redis Cluster specification, "Key distribution model")."""

import binascii
from typing import Final

__all__ = ["SLOTS", "key_of", "slot_of"]

SLOTS: Final = 16_384


def slot_of(key: bytes) -> int:
    """Compute a key's slot: CRC16 (XMODEM) of the text in its first braces; of the whole key if that is empty."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


def key_of(command: bytes) -> bytes | None:
    """Find the first key of a command encoded by `wire.command`; None = no key: it must be sent to every server."""
    words = _words(command, 5)
    name = words[0].upper()
    if name in (b"EVAL", b"EVALSHA", b"FCALL_RO"):
        return words[3] if words[2] != b"0" else None
    if name == b"XREAD":
        return words[4]  # after BLOCK and STREAMS, as nodes send it
    if name in (b"FUNCTION", b"SCRIPT", b"TIME") or len(words) < 2:
        return None
    return words[1]


def _words(command: bytes, count: int) -> list[bytes]:
    """Read the first words of a command."""
    at = command.index(b"\r\n")
    total = min(count, int(command[1:at]))
    at += 2
    words = []
    for _ in range(total):
        end = command.index(b"\r\n", at)
        length = int(command[at + 1 : end])
        words.append(command[end + 2 : end + 2 + length])
        at = end + 4 + length
    return words
