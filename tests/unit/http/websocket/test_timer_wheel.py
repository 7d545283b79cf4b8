"""The wheel: pings and deadlines of all connections on one timer, with a manual clock."""

from collections.abc import Callable

import pytest

from snorky.gateway.http.websocket import timer_wheel as module
from snorky.gateway.http.websocket.timer_wheel import CLOSE_TIMEOUT_S, TICK_S, TimerWheel


class Clock:
    """An event loop's timers with a manual clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> object:
        self.timers.append((self.now_s + delay_s, callback))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        """Advance, and call each timer that is due, at its time."""
        end_s = self.now_s + seconds + 1e-9
        while due := [timer for timer in self.timers if timer[0] <= end_s]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now_s = first[0]
            first[1]()
        self.now_s = end_s


class TimedConnection:
    def __init__(self, clock: Clock, on_beat: Callable[["TimedConnection"], None] | None = None) -> None:
        self.slot = 0
        self.beats: list[float] = []
        self.aborts: list[float] = []
        self._clock = clock
        self._on_beat = on_beat

    def beat(self) -> None:
        self.beats.append(round(self._clock.now_s - 100, 3))
        if self._on_beat is not None:
            self._on_beat(self)

    def abort(self) -> None:
        self.aborts.append(round(self._clock.now_s - 100, 3))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.asyncio, "get_running_loop", lambda: clock)
    return clock


def test_each_spoke_is_beaten_once_in_an_interval(clock: Clock) -> None:
    wheel = TimerWheel(10.0)
    spokes = [TimedConnection(clock) for _ in range(100)]
    for connection in spokes:
        wheel.add(connection)
    clock.advance(10.0)
    assert [len(connection.beats) for connection in spokes] == [1] * 100
    clock.advance(50.0)
    for connection in spokes:
        assert len(connection.beats) == 6
        assert {
            round(later - sooner, 3) for sooner, later in zip(connection.beats, connection.beats[1:], strict=False)
        } == {10.0}


def test_spokes_added_at_once_are_spread_over_the_interval(clock: Clock) -> None:
    wheel = TimerWheel(10.0)
    spokes = [TimedConnection(clock) for _ in range(400)]
    for connection in spokes:
        wheel.add(connection)
    clock.advance(10.0)
    at: dict[float, int] = {}
    for connection in spokes:
        at[connection.beats[0]] = at.get(connection.beats[0], 0) + 1
    assert set(at.values()) == {10} and len(at) == 10 / TICK_S


@pytest.mark.parametrize("interval_s", [0.01, 0.25, 0.3, 1.0, 86_400.0])
def test_every_interval_that_may_be_set_is_kept(clock: Clock, interval_s: float) -> None:
    wheel = TimerWheel(interval_s)
    connection = TimedConnection(clock)
    wheel.add(connection)
    clock.advance(min(3 * interval_s, 3.0) if interval_s < 86_400 else 1.0)
    assert len(connection.beats) == (3 if interval_s < 86_400 else 1)


def test_a_long_interval_costs_no_memory() -> None:
    wheel = TimerWheel(86_400.0)
    assert len(wheel._slots) == 0


def test_removed_entries_are_not_called(clock: Clock) -> None:
    wheel = TimerWheel(1.0)
    stays, goes = TimedConnection(clock), TimedConnection(clock)
    wheel.add(stays)
    wheel.add(goes)
    wheel.remove(goes)
    wheel.remove(goes)
    clock.advance(5.0)
    assert len(stays.beats) == 5 and goes.beats == goes.aborts == []


def test_one_that_is_removed_by_another_s_beat_is_not_beaten(clock: Clock) -> None:
    wheel = TimerWheel(TICK_S)  # one slot
    spokes: list[TimedConnection] = []

    def remove_all(_spoke: TimedConnection) -> None:
        for each in spokes:
            wheel.remove(each)

    spokes += [TimedConnection(clock, remove_all) for _ in range(3)]
    for each in spokes:
        wheel.add(each)
    clock.advance(TICK_S)
    assert sum(len(each.beats) for each in spokes) >= 1
    clock.advance(10.0)
    assert sum(len(each.beats) for each in spokes) <= 3


def test_ending_connection_is_aborted_after_its_deadline_without_pings_before(clock: Clock) -> None:
    wheel = TimerWheel(0.25)
    connection = TimedConnection(clock)
    wheel.add(connection)
    clock.advance(0.25)
    wheel.end_soon(connection)
    clock.advance(10.0)
    assert connection.beats == [0.25], "a ping after a close frame"
    assert len(connection.aborts) == 1
    # a slow consumer's memory is released within 2 s
    assert CLOSE_TIMEOUT_S <= connection.aborts[0] - 0.25 <= 2.0


def test_connection_that_ended_in_time_is_not_aborted(clock: Clock) -> None:
    wheel = TimerWheel(0.25)
    connection = TimedConnection(clock)
    wheel.add(connection)
    wheel.end_soon(connection)
    clock.advance(1.0)
    wheel.remove(connection)
    clock.advance(10.0)
    assert connection.aborts == []


def test_an_end_needs_no_beat_before(clock: Clock) -> None:
    wheel = TimerWheel(10.0)
    connection = TimedConnection(clock)
    wheel.end_soon(connection, timeout_s=0.5)
    clock.advance(1.0)
    assert connection.aborts == [0.5]


def test_the_timer_ends_with_the_last_and_begins_with_the_next(clock: Clock) -> None:
    wheel = TimerWheel(1.0)
    for _ in range(3):
        connection = TimedConnection(clock)
        wheel.add(connection)
        assert len(clock.timers) == 1
        wheel.remove(connection)
        clock.advance(1.0)
        assert clock.timers == []
    connection = TimedConnection(clock)
    wheel.end_soon(connection)
    clock.advance(3.0)
    assert len(connection.aborts) == 1 and clock.timers == []


def test_a_beat_that_fails_does_not_stop_the_wheel(clock: Clock) -> None:
    def fail(_spoke: TimedConnection) -> None:
        raise RuntimeError("a transport's own fault")

    wheel = TimerWheel(TICK_S)
    wheel.add(TimedConnection(clock, fail))
    with pytest.raises(RuntimeError):
        clock.advance(TICK_S)
    later = TimedConnection(clock)
    wheel.add(later)
    assert clock.timers, "no ping would ever be sent again"


def test_a_half_open_connection_is_removed_within_two_intervals(clock: Clock) -> None:
    """A protocol's reaction to its beats: ping, and close if nothing was received since."""
    wheel = TimerWheel(10.0)
    answers, is_heard = True, True
    cuts_s: list[float] = []

    def on_beat(_spoke: TimedConnection) -> None:
        nonlocal is_heard
        if not is_heard:
            cuts_s.append(clock.now_s)
        is_heard = answers  # a pong comes at once, or none does

    wheel.add(TimedConnection(clock, on_beat))
    clock.advance(30.0)
    assert cuts_s == []
    answers, silent_since_s = False, clock.now_s
    is_heard = True  # last time that something was received from it
    clock.advance(40.0)
    assert 10.0 <= cuts_s[0] - silent_since_s <= 20.0


def test_an_expected_pong_has_a_deadline_that_its_arrival_ends(clock: Clock) -> None:
    wheel, late = TimerWheel(10), list[tuple[str, float]]()

    def expect(name: str, connection: TimedConnection) -> None:
        wheel.expect(connection, 3.0, lambda: late.append((name, round(clock.now_s - 100, 3))))

    first, second, third, fourth = (TimedConnection(clock) for _ in range(4))
    expect("first", first)
    clock.advance(1)
    for name, connection in (("second", second), ("third", third), ("fourth", fourth)):
        expect(name, connection)
    wheel.came(second)
    wheel.remove(third)
    clock.advance(1)
    expect("first", first)  # a new message
    clock.advance(10)
    assert [name for name, _ in late] == ["fourth", "first"]
    assert all(due_s <= at_s <= due_s + TICK_S for (_, at_s), due_s in zip(late, (4.0, 5.0), strict=True))
    assert not clock.timers, "without entries the timer ends"
