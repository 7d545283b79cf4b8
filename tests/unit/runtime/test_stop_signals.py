"""StopSignals: duplicates of one request, a second request, SIGHUP, and workers that obey only their supervisor."""

import os
import signal

import pytest

from snorky.gateway.runtime.stop_signals import DRAIN_SHORTLY, DRAIN_SIGNAL, IMPATIENT_AFTER_S, StopSignals


class Hand:
    """A manual clock, and the list of signals that ended the process."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.ended: list[int] = []
        self.reloads = 0
        self.has_terminal = False

    def signals(self, supervisor_pid: int | None = None, *, can_reload: bool = False) -> StopSignals:
        return StopSignals(
            supervisor_pid=supervisor_pid,
            on_impatient=self.ended.append,
            on_reload=self.reload if can_reload else None,
            has_terminal=lambda: self.has_terminal,
            clock=lambda: self.now_s,
        )

    def reload(self) -> None:
        self.reloads += 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_the_first_signal_asks_to_stop(number: signal.Signals) -> None:
    hand = Hand()
    signals = hand.signals()
    signals.take(number)
    await signals.wait()
    assert (signals.number, hand.ended) == (number, [])


async def test_signals_of_the_same_moment_are_one_request() -> None:
    hand = Hand()
    signals = hand.signals()
    signals.take(signal.SIGINT)
    for step_s in (0.0, 0.02, 0.9):
        hand.now_s = 100.0 + step_s
        signals.take(signal.SIGTERM)
    assert (signals.number, hand.ended) == (signal.SIGINT, [])


async def test_a_signal_a_second_later_is_impatience() -> None:
    hand = Hand()
    signals = hand.signals()
    signals.take(signal.SIGTERM)
    hand.now_s += IMPATIENT_AFTER_S
    signals.take(signal.SIGINT)
    assert hand.ended == [signal.SIGINT]


async def test_a_worker_obeys_its_supervisor_alone() -> None:
    hand = Hand()
    signals = hand.signals(supervisor_pid=os.getppid())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signals.take(number)
        hand.now_s += 5.0
        signals.take(number)
    assert (signals.number, hand.ended) == (0, [])
    signals.take(DRAIN_SIGNAL)
    await signals.wait()
    hand.now_s += 5.0
    signals.take(signal.SIGTERM)
    assert (signals.number, hand.ended) == (DRAIN_SIGNAL, [])


async def test_a_worker_whose_supervisor_has_ended_obeys_any_sender() -> None:
    hand = Hand()
    signals = hand.signals(supervisor_pid=os.getpid())  # of no parent of this process
    signals.take(signal.SIGTERM)
    await signals.wait()
    assert signals.number == signal.SIGTERM


async def test_a_short_drain_is_for_a_person_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        is_terminal = True

        def isatty(self) -> bool:
            return self.is_terminal

    monkeypatch.setattr("sys.stderr", Terminal())
    asked = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signals = Hand().signals()
        signals.take(number)
        asked[number] = signals.wants_short_drain
    assert asked == {signal.SIGINT: True, signal.SIGTERM: False, signal.SIGHUP: False}
    worker = Hand().signals(supervisor_pid=os.getppid())
    worker.take(DRAIN_SHORTLY)
    assert worker.wants_short_drain
    monkeypatch.setattr(Terminal, "is_terminal", False)
    signals = Hand().signals()
    signals.take(signal.SIGINT)
    assert not signals.wants_short_drain


@pytest.mark.parametrize("supervisor_pid", [None, os.getppid()], ids=["alone", "worker"])
async def test_sighup_asks_to_read_the_settings_again(supervisor_pid: int | None) -> None:
    hand = Hand()
    signals = hand.signals(supervisor_pid, can_reload=True)
    for _ in range(2):
        signals.take(signal.SIGHUP)
        hand.now_s += 5.0
    assert (signals.number, hand.ended, hand.reloads) == (0, [], 2)
    signals.take(signal.SIGTERM if supervisor_pid is None else DRAIN_SIGNAL)
    await signals.wait()
    hand.now_s += 5.0
    signals.take(signal.SIGHUP)  # not a second request to stop
    assert hand.ended == []


async def test_sighup_at_a_terminal_reloads_until_the_terminal_is_closed() -> None:
    hand = Hand()
    hand.has_terminal = True
    signals = hand.signals(can_reload=True)
    signals.take(signal.SIGHUP)
    assert (signals.number, hand.reloads) == (0, 1)
    hand.has_terminal = False
    signals.take(signal.SIGHUP)
    assert (signals.number, hand.reloads) == (signal.SIGHUP, 1)
