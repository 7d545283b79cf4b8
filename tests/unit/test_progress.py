"""When a silent client counts as alive: by what its system acknowledges."""

import pytest

from gateway.http.progress import PATIENCE_MAX_S, SLOWEST_BYTES_PER_S, Sent, SilentPeer

INTERVAL_S = 10.0


def judged(*rounds: tuple[int, bool], last: int = 0) -> list[bool]:
    """Judge a client by what it acknowledged in each silent interval, and if something is unacknowledged at its end."""
    peer, total, verdicts = SilentPeer(last), last, []
    for acked_bytes, has_unacked in rounds:
        total += acked_bytes
        verdicts.append(peer.is_alive(Sent(total, has_unacked), INTERVAL_S))
    return verdicts


def test_slow_line_that_acknowledges_is_alive() -> None:
    assert judged(*[(200_000, True)] * 5, last=7_000_000) == [True] * 5


def test_line_that_acknowledges_nothing_of_what_waits_is_dead() -> None:
    assert judged((0, True)) == [False]
    assert judged((900_000, True), (0, True)) == [True, False]


def test_application_that_hangs_behind_a_living_system_is_dead() -> None:
    """The system acknowledges pings and small messages at once."""
    assert judged((2, False)) == [False]
    assert judged((1_000, False)) == [False]


def test_application_has_time_for_what_its_system_took() -> None:
    took = int(SLOWEST_BYTES_PER_S * 35)
    assert judged((took, False), (0, False), (0, False), (0, False)) == [True, True, True, False]


def test_patience_ends() -> None:
    rounds = int(PATIENCE_MAX_S / INTERVAL_S)
    assert judged(*[(10_000_000, True)] * (rounds + 1)) == [True] * rounds + [False]


@pytest.mark.parametrize("last", [0, 10**12])
def test_system_that_tells_nothing_leaves_the_old_rule(last: int) -> None:
    assert not SilentPeer(last).is_alive(None, INTERVAL_S)
