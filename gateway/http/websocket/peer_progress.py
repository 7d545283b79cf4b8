"""Whether a client that sends nothing still receives our data, according to the kernel.

A ping is queued after everything that was written before it. So a client with a slow connection answers late although
it is alive, and one that is receiving many missed messages would be closed before it has read the ping.

Rules:
- Bytes that the peer acknowledges count as a sign of life, at SLOWEST_BYTES_PER_S: its application may need that long
  to read them before it reaches our ping.
- If no outstanding data is acknowledged during a whole interval, the connection is dead, regardless of earlier
  acknowledgements. A ping is sent in every interval, so that some data is outstanding.
- While the other end reports a full receive window, the data waiting for it is not outstanding: a peer with
  a large buffer, e.g. a proxy, opens its window in steps of 100 KB or more, and a slow connection needs longer for one.
- The client is dead if the node reads from it for PATIENCE_MAX_S and receives no frame.
"""

import asyncio
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

__all__ = ["PATIENCE_MAX_S", "SLOWEST_BYTES_PER_S", "Sent", "SilentPeer", "read_sent"]

SLOWEST_BYTES_PER_S: Final = 8_192.0  # a bad mobile connection; 1 MiB, the default outbox_max_bytes, takes 128 s
PATIENCE_MAX_S: Final = 150.0

_TCP_INFO_BYTES: Final = 160
_FIELDS: Final = struct.Struct("@3xB20xI92xQ")  # struct tcp_info of linux/tcp.h: probes, unacked, bytes_acked
_PROBES_MAX: Final = 2  # unanswered window probes; one may be in transit


@dataclass(frozen=True, slots=True)
class Sent:
    """The kernel's information on the bytes written to one socket. acked_bytes: since it was opened.

    has_unacked: data or a window probe was sent and not answered.
    """

    acked_bytes: int
    has_unacked: bool


def read_sent(transport: asyncio.Transport) -> Sent | None:
    """Ask the kernel; None = unknown: not TCP, Linux older than 4.6, or a system with another structure."""
    found: socket.socket | None = transport.get_extra_info("socket")
    if found is None or sys.platform != "linux":
        return None
    try:
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _FIELDS.size:
        return None
    probes, unacked, acked_bytes = _FIELDS.unpack_from(info)
    return Sent(acked_bytes, bool(unacked) or probes > _PROBES_MAX)


class SilentPeer:
    """A client that sent nothing for one interval or more. last_acked_bytes: at the beginning of that interval."""

    __slots__ = ("_acked_bytes", "_credit_s", "_silent_s")

    def __init__(self, last_acked_bytes: int) -> None:
        self._acked_bytes = last_acked_bytes
        self._credit_s = 0.0
        self._silent_s = 0.0

    def is_alive(self, sent: Sent | None, interval_s: float, *, is_read: bool = True) -> bool:
        """Evaluate one more silent interval. is_read: the node reads from this client."""
        if sent is None:
            return False
        acked_bytes, self._acked_bytes = sent.acked_bytes - self._acked_bytes, sent.acked_bytes
        self._silent_s += interval_s * is_read
        if (sent.has_unacked and not acked_bytes) or self._silent_s > PATIENCE_MAX_S:
            return False
        self._credit_s += acked_bytes / SLOWEST_BYTES_PER_S - interval_s
        return self._credit_s > 0
