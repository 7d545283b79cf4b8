"""The limiter on a clock of the test's own."""

import pytest

from gateway import limiter
from gateway.limiter import Limiter


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


def test_burst_is_let_through_and_not_one_more(clock: Clock) -> None:
    bucket = Limiter(10, 5, 20)
    assert [bucket.take() for _ in range(5)] == [0] * 5
    assert bucket.take() > 0


def test_bucket_holds_no_more_than_a_burst_however_long_it_rests(clock: Clock) -> None:
    bucket = Limiter(10, 5, 20)
    clock.now_s += 3600
    assert [bucket.take() for _ in range(6)][:5] == [0] * 5
    assert bucket.take() > 0


@pytest.mark.parametrize("per_s", [0.001, 0.3, 1, 3, 7, 30, 300, 700, 3_000, 1e9])
def test_after_the_time_told_there_is_a_token(clock: Clock, per_s: float) -> None:
    bucket = Limiter(per_s, 1, 20)
    assert bucket.take() == 0
    wait_ms = bucket.take()
    if wait_ms == 0:  # so fast that it is there already
        return
    clock.now_s += wait_ms / 1000
    assert bucket.take() == 0


def test_time_told_is_not_more_than_needed(clock: Clock) -> None:
    bucket = Limiter(2, 1, 20)
    bucket.take()
    assert bucket.take() == 500


def test_refused_message_takes_nothing(clock: Clock) -> None:
    bucket = Limiter(1, 1, 20)
    bucket.take()
    for _ in range(100):
        assert bucket.take() > 0
    clock.now_s += 1
    assert bucket.take() == 0


def test_refused_messages_that_come_when_told_are_taken_one_behind_the_other(clock: Clock) -> None:
    bucket = Limiter(100, 200, 20)
    waits_ms = [bucket.take() for _ in range(1000)]  # a client that is back with 1,000 subscriptions
    assert waits_ms[:200] == [0] * 200
    assert waits_ms[200:] == [10 * number for number in range(1, 801)]
    began_s = clock.now_s
    for wait_ms in waits_ms[200:]:
        clock.now_s = began_s + wait_ms / 1000
        assert bucket.take() == 0


def test_impatient_client_does_not_lengthen_its_wait_for_ever(clock: Clock) -> None:
    bucket = Limiter(10, 1, 20)
    for _ in range(50):
        bucket.take()
    clock.now_s += 60
    assert bucket.take() == 0
    assert bucket.take() == 100


def test_too_fast_messages_are_borne_ten_times_the_burst_a_minute(clock: Clock) -> None:
    bucket = Limiter(1, 2, 1)
    assert [bucket.note_refused() for _ in range(21)] == [False] * 20 + [True]
    clock.now_s += 60.1
    assert not bucket.note_refused()


def test_sustained_rate_is_the_one_set(clock: Clock) -> None:
    bucket = Limiter(100, 10, 20)
    let_through = 0
    for _ in range(10_000):  # a client that sends 1,000 a second for 10 s
        let_through += bucket.take() == 0
        clock.now_s += 0.001
    assert 1000 <= let_through <= 1010


def test_one_bad_message_too_many_within_a_minute_is_told(clock: Clock) -> None:
    bucket = Limiter(1, 1, 3)
    assert [bucket.note_bad() for _ in range(4)] == [False, False, False, True]


def test_bad_messages_are_forgotten_after_a_minute(clock: Clock) -> None:
    bucket = Limiter(1, 1, 3)
    for _ in range(3):
        assert not bucket.note_bad()
    clock.now_s += 60.1
    assert [bucket.note_bad() for _ in range(3)] == [False] * 3
