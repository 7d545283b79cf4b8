"""When a silent client counts as alive: by what its system acknowledges."""

import asyncio
import socket
import sys

import pytest

from snorky.gateway.http.websocket.peer_progress import PATIENCE_MAX_S, SLOWEST_BYTES_PER_S, Sent, SilentPeer, read_sent
from tests.support.processes.tools import eventually

INTERVAL_S = 10.0


def judged(*rounds: tuple[int, bool], last: int = 0) -> list[bool]:
    """Check a client by the bytes acknowledged in each silent interval, and whether some are missing at the end."""
    peer, total, verdicts = SilentPeer(last), last, []
    for acked_bytes, has_unacked in rounds:
        total += acked_bytes
        verdicts.append(peer.is_alive(Sent(total, has_unacked), INTERVAL_S))
    return verdicts


def test_slow_line_that_acknowledges_is_alive() -> None:
    assert judged(*[(200_000, True)] * 5, last=7_000_000) == [True] * 5


def test_connection_without_acknowledgements_of_queued_bytes_is_dead() -> None:
    assert judged((0, True)) == [False]
    assert judged((900_000, True), (0, True)) == [True, False]


def test_application_that_hangs_while_its_system_acknowledges_is_dead() -> None:
    """The system acknowledges pings and small messages at once."""
    assert judged((2, False)) == [False]
    assert judged((1_000, False)) == [False]


def test_application_has_time_for_bytes_that_its_system_acknowledged() -> None:
    took = int(SLOWEST_BYTES_PER_S * 35)
    assert judged((took, False), (0, False), (0, False), (0, False)) == [True, True, True, False]


def test_patience_ends() -> None:
    rounds = int(PATIENCE_MAX_S / INTERVAL_S)
    assert judged(*[(10_000_000, True)] * (rounds + 1)) == [True] * rounds + [False]


@pytest.mark.parametrize("last", [0, 10**12])
def test_without_acknowledgement_counts_only_pongs_matter(last: int) -> None:
    assert not SilentPeer(last).is_alive(None, INTERVAL_S)


@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_INFO of Linux")
async def test_bytes_waiting_for_the_receivers_window_do_not_count_as_unacknowledged() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.connect(server.getsockname())
        ours, _ = server.accept()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
        transport.write(b"x" * 900_000)  # no reader: more than both systems buffer

        async def is_settled() -> bool:
            sent = read_sent(transport)
            return sent is not None and 0 < sent.acked_bytes < 900_000 and not sent.has_unacked

        await eventually(is_settled, within_s=30, what="its system has acknowledged all that it has room for")
        transport.abort()
