"""The limiter on a manual clock."""

import pytest

from snorky.gateway.connection import rate_limiter as limiter
from snorky.gateway.connection.rate_limiter import Limiter, Rates, Share


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limiter, "monotonic", clock)
    return clock


def test_burst_is_accepted_and_not_one_more(clock: Clock) -> None:
    bucket = Limiter(Rates(10, 5), 20)
    assert [bucket.take() for _ in range(5)] == [0] * 5
    assert bucket.take() > 0


def test_bucket_never_exceeds_a_burst_however_long_it_is_unused(clock: Clock) -> None:
    bucket = Limiter(Rates(10, 5), 20)
    clock.now_s += 3600
    assert [bucket.take() for _ in range(6)][:5] == [0] * 5
    assert bucket.take() > 0


@pytest.mark.parametrize("per_s", [0.001, 0.3, 1, 3, 7, 30, 300, 700, 3_000, 1e9])
def test_after_the_announced_wait_a_message_is_accepted(clock: Clock, per_s: float) -> None:
    bucket = Limiter(Rates(per_s, 1), 20)
    assert bucket.take() == 0
    wait_ms = bucket.take()
    if wait_ms == 0:  # so fast that it has already arrived
        return
    clock.now_s += wait_ms / 1000
    assert bucket.take() == 0


def test_announced_wait_is_not_longer_than_needed(clock: Clock) -> None:
    bucket = Limiter(Rates(2, 1), 20)
    bucket.take()
    assert bucket.take() == 500


def test_refused_message_takes_nothing(clock: Clock) -> None:
    bucket = Limiter(Rates(1, 1), 20)
    bucket.take()
    for _ in range(100):
        assert bucket.take() > 0
    clock.now_s += 1
    assert bucket.take() == 0


def test_refused_messages_retried_after_the_announced_wait_are_accepted_in_turn(clock: Clock) -> None:
    bucket = Limiter(Rates(100, 200), 20)
    waits_ms = [bucket.take() for _ in range(1000)]  # a client that reconnects with 1,000 subscriptions
    assert waits_ms[:200] == [0] * 200
    assert waits_ms[200:] == [10 * number for number in range(1, 801)]
    began_s = clock.now_s
    for wait_ms in waits_ms[200:]:
        clock.now_s = began_s + wait_ms / 1000
        assert bucket.take() == 0


def test_early_retries_do_not_extend_the_wait_indefinitely(clock: Clock) -> None:
    bucket = Limiter(Rates(10, 1), 20)
    for _ in range(50):
        bucket.take()
    clock.now_s += 60
    assert bucket.take() == 0
    assert bucket.take() == 100


def test_too_fast_messages_are_borne_ten_times_the_burst_a_minute(clock: Clock) -> None:
    bucket = Limiter(Rates(1, 2), 1)
    assert [bucket.note_refused() for _ in range(21)] == [False] * 20 + [True]
    clock.now_s += 60.1
    assert not bucket.note_refused()


def test_sustained_rate_is_the_one_set(clock: Clock) -> None:
    bucket = Limiter(Rates(100, 10), 20)
    let_through = 0
    for _ in range(10_000):  # a client that sends 1,000 a second for 10 s
        let_through += bucket.take() == 0
        clock.now_s += 0.001
    assert 1000 <= let_through <= 1010


def test_one_bad_message_too_many_within_a_minute_is_detected(clock: Clock) -> None:
    bucket = Limiter(Rates(1, 1), 3)
    assert [bucket.note_bad() for _ in range(4)] == [False, False, False, True]


def test_bad_messages_are_forgotten_after_a_minute(clock: Clock) -> None:
    bucket = Limiter(Rates(1, 1), 3)
    for _ in range(3):
        assert not bucket.note_bad()
    clock.now_s += 60.1
    assert [bucket.note_bad() for _ in range(3)] == [False] * 3


def test_bytes_count_as_well_as_messages_and_refused_ones_cost_nothing(clock: Clock) -> None:
    bucket = Limiter(Rates(10, 100, bytes_per_s=100, bytes_burst=1000), 20)
    assert bucket.take(900) == 0
    assert bucket.take(500) == 4_000 and bucket.limit == "bytes_per_s"
    assert bucket.take(100) == 0
    clock.now_s += 4
    assert bucket.take(400) == 0


def test_refused_bytes_close_a_persistent_client_sooner_than_refused_messages(clock: Clock) -> None:
    bucket = Limiter(Rates(1, 1000, bytes_per_s=1, bytes_burst=1000), 20)
    assert bucket.take(1000) == 0
    refused = []
    for _ in range(5):
        assert bucket.take(300) > 0
        refused.append(bucket.note_refused(300))
    assert refused == [False, False, False, True, True]


def test_a_share_outlives_its_connections(clock: Clock) -> None:
    share = Share("per_ip", Rates(10, 20))
    taken = 0
    for _ in range(50):  # connections, one after another
        bucket = Limiter(Rates(10, 5), 20, [share])
        while not bucket.take():
            taken += 1
    assert taken == 20
    assert bucket.limit == "messages_per_ip"
    clock.now_s += 1
    assert [Limiter(Rates(10, 5), 20, [share]).take() for _ in range(10)] == [0] * 10


def test_what_a_connection_borrows_is_bounded_and_its_own(clock: Clock) -> None:
    share = Share("per_identity", Rates(10, 6400, 1e6, 1e6))
    first, second = (Limiter(Rates(10, 2048, 1e6, 1e6), 20, [share]) for _ in range(2))
    assert first.take(10) == 0 and second.take(10) == 0
    assert share.messages.tokens == 6400 - 2 * limiter.BORROWED_MESSAGES
    assert sum(first.take(10) == 0 for _ in range(10_000)) == 2047  # up to the last of its own


def test_a_thousand_connections_of_one_address_may_send_one_message_each(clock: Clock) -> None:
    rates = Rates(100, 1_000, 2_097_152, 16_777_216)
    share = Share("per_ip", rates.times(10))
    assert [Limiter(rates, 20, [share]).take(100) for _ in range(5_000)] == [0] * 5_000


def test_all_shares_or_none(clock: Clock) -> None:
    full, empty = Share("per_ip", Rates(1, 64)), Share("per_identity", Rates(1, 1))
    bucket = Limiter(Rates(1, 64), 20, [full, empty])
    assert bucket.take() == 0
    before = full.messages.tokens
    assert bucket.take() == 1_000 and bucket.limit == "messages_per_identity"
    assert full.messages.tokens == before


def test_of_one_address_too_many_refused_ones_end_any_connection(clock: Clock) -> None:
    share = Share("per_ip", Rates(0.001, 2))
    for _ in range(2):
        assert Limiter(Rates(10, 5), 20, [share]).take() == 0
    refused = []
    for _ in range(2 * limiter.REFUSED_PER_BURST + 1):
        bucket = Limiter(Rates(10, 5), 20, [share])
        assert bucket.take() > 0
        refused.append(bucket.note_refused())
    assert refused == [False] * (2 * limiter.REFUSED_PER_BURST) + [True]


def test_frames_have_tokens_of_their_own_in_every_share(clock: Clock) -> None:
    share = Share("per_ip", Rates(10, 100, frames_per_s=1, frames_burst=5))
    first, second = (Limiter(Rates(10, 10, frames_per_s=1, frames_burst=3), 20, [share]) for _ in range(2))
    assert [first.take_frame() for _ in range(4)] == [True] * 3 + [False]
    assert first.limit == "frames_per_s"
    assert [second.take_frame() for _ in range(3)] == [True] * 2 + [False]
    assert second.limit == "frames_per_ip"
    assert first.take() == 0
    clock.now_s += 1
    assert second.take_frame()
