"""The order of a channel: single cases that the model finds only by chance."""

import pytest

from snorky.gateway.delivery.channel_order import ChannelOrder, Gap, Late
from snorky.gateway.protocol.publication import Position, Publication

# -- single cases that the model finds only by chance ---------------------------------------------------------------


def chain(*offsets: int, epoch: str = "e", line: str = "t") -> list[Publication]:
    return [Publication(b"%d" % n, Position(epoch, n, f"{line}{n}"), f"{line}{n - 1}") for n in offsets]


def started(at: int = 0) -> ChannelOrder:
    begun = ChannelOrder()
    begun.start_at(Position("e", at, f"t{at}"))
    return begun


def test_the_next_message_is_delivered_and_a_repeated_one_dropped() -> None:
    node = started()
    one, two = chain(1, 2)
    assert node.receive([one, one, two, one]) == [one, two]
    assert not node.wants_fill


@pytest.mark.parametrize(
    "heard",
    [
        pytest.param(chain(3), id="a hole"),
        pytest.param(chain(1, epoch="f"), id="another epoch"),
        pytest.param([Publication(b"x", Position("e", 1, "other"), "t0")], id="an offset used again"),
        pytest.param([Publication(b"x", Position("e", 2, "t2"), "other")], id="another predecessor"),
    ],
)
def test_history_is_asked_for_whatever_does_not_follow(heard: list[Publication]) -> None:
    node = started()
    node.receive(chain(1))
    assert node.receive(heard) == []
    assert node.wants_fill
    assert node.receive(chain(2)) == [], "it will be read"


def test_late_message_of_a_former_server_makes_no_gap() -> None:
    """A message from the former primary arrives after the node has the new epoch: by history nothing is missing."""
    node = started()
    assert node.receive(chain(7, epoch="former")) == []
    assert node.begin_fill() == Position("e", 0, "t0")
    assert node.end_fill([]) == []
    assert node.receive(chain(1)) == chain(1)


def test_messages_in_flight_when_the_position_was_sent_are_for_earlier_subscribers() -> None:
    node = started(2)
    one, two, three = chain(1, 2, 3)
    assert node.receive([one, two, three]) == [Late(one), Late(two), three]
    assert node.receive([two]) == [], "and that ends with the channel's next message"


def test_everything_is_delivered_until_a_position_is_known() -> None:
    node = ChannelOrder()
    assert node.receive(chain(7)) == chain(7)
    node.start_at(Position("e", 9, "t9"))
    assert node.last == Position("e", 7, "t7"), "messages in flight will be delivered"
    node.receive([])
    assert node.receive(chain(8, 9)) == chain(8, 9)


def test_nothing_is_filled_before_anything_was_promised() -> None:
    node = ChannelOrder()
    node.want_fill()
    assert not node.wants_fill and node.agrees(None)


def test_the_queue_is_bounded_in_bytes_and_the_rest_is_read_again() -> None:
    node = started()
    node.want_fill()
    node.begin_fill()
    large = [Publication(bytes(600_000), Position("e", n, f"t{n}"), f"t{n - 1}") for n in (1, 2)]
    assert node.receive(large) == []
    assert node.end_fill([]) == []
    assert node.wants_fill
    node.begin_fill()
    assert node.end_fill(large) == large and not node.wants_fill


def test_interruption_during_a_fill_asks_for_another() -> None:
    node = started()
    node.want_fill()
    node.begin_fill()
    node.want_fill()
    assert node.end_fill(chain(1)) == chain(1)
    assert node.wants_fill


def test_messages_still_in_history_are_delivered_after_a_gap() -> None:
    node = started()
    node.receive(chain(1))
    node.want_fill()
    node.begin_fill()
    assert node.end_fill_with_gap(Position("e", 5, "t5"), chain(4, 5)) == [Gap(Position("e", 3, "t3")), *chain(4, 5)]


def test_nothing_is_delivered_again_after_a_gap() -> None:
    """A lagging replica has what was delivered, up to the point where the histories differ."""
    node = started()
    node.receive(chain(1, 2, 3, 4))
    node.want_fill()
    node.begin_fill()
    other = Publication(b"x", Position("e", 3, "u3"), "t2")
    steps = node.end_fill_with_gap(Position("e", 3, "u3"), [*chain(1, 2), other])
    assert steps == [Gap(Position("e", 2, "t2")), other]


def test_comparing_finds_a_history_that_went_back_further_than_is_remembered() -> None:
    node = started()
    node.receive(chain(*range(1, 400)))
    assert node.agrees(Position("e", 399, "t399")) and node.agrees(Position("e", 390, "t390"))
    assert not node.agrees(Position("e", 5, "u5"))
    assert not node.agrees(Position("e", 390, "u390"))
    assert not node.agrees(Position("e", 400, "t400"))
    assert not node.agrees(None)


def test_offsets_reused_beyond_the_remembered_range_are_looked_up_at_once() -> None:
    node = started()
    node.receive(chain(*range(1, 400)))
    assert node.receive([Publication(b"x", Position("e", 5, "u5"), "t4")]) == [] and node.wants_fill
    assert node.begin_fill() == Position("e", 399, "t399")


def test_entries_older_than_the_nodes_subscription_cause_no_read() -> None:
    node = started(at=300)
    (old,) = chain(7)
    assert node.receive([old]) == [Late(old)] and not node.wants_fill


def hints(publications: list[Publication]) -> list[Publication]:
    return [Publication(each.payload, hint=each.position) for each in publications]


def test_a_hint_is_not_delivered_but_history_is_read() -> None:
    node = started()
    assert node.receive(hints(chain(1))) == []
    assert node.begin_fill() == Position("e", 0, "t0")
    assert node.receive([*hints(chain(1)), *chain(2)]) == []
    assert node.end_fill(chain(1)) == chain(1, 2)
    assert not node.wants_fill, "the position of the hint is known by then"


@pytest.mark.parametrize("forged", [Position("e", 1, "x"), Position("e", 99, "x"), Position("f", 1, "x")])
def test_a_forged_hint_costs_a_read_and_changes_nothing(forged: Position) -> None:
    node = started()
    assert node.receive([Publication(b"forged", hint=forged)]) == []
    assert node.begin_fill() == Position("e", 0, "t0")
    assert node.end_fill([]) == []
    assert node.receive(chain(1, 2)) == chain(1, 2)
    assert node.receive(hints(chain(1, 2))) == [] and not node.wants_fill


def test_a_hint_received_before_the_position_is_looked_up_once_the_position_is_known() -> None:
    node = ChannelOrder()
    assert node.receive(hints(chain(7))) == [] and node.last is None
    node.start_at(Position("e", 6, "t6"))
    assert node.wants_fill and node.begin_fill() == Position("e", 6, "t6")
    assert node.end_fill(chain(7)) == chain(7)
