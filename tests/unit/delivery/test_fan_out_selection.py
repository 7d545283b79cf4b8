"""Publications for some clients, for buffering and recovering ones, and for the node's own listener."""

from collections.abc import Sequence

import msgpack  # type: ignore[import-untyped]  # ships no annotations
from structlog.testing import capture_logs

from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.channel_order import Gap, Late, Step
from snorky.gateway.delivery.fan_out import Fanout
from snorky.gateway.protocol.codec import Json, decode_json
from snorky.gateway.protocol.publication import MARK, Position, Publication, Selector, write_addressed
from snorky.gateway.protocol.splicing import PAYLOAD, Template
from snorky.gateway.protocol.ws_frames import Dialect
from tests.support.fakes.fake_wire import JSON, MSGPACK, FakeTransport, settle
from tests.support.scenarios.fan_out_rig import KEY, OTHER, Rig, numbers

# -- addressed publications -------------------------------------------------------------------------------------------


def addressed(value: int, selector: Selector) -> bytes:
    return write_addressed(b"%d" % value, selector)


def test_addressed_publication_reaches_whom_it_selects_in_its_place_among_the_others() -> None:
    rig = Rig()
    bob, ann, packed = rig.subscriber(), rig.subscriber(), rig.subscriber(dialect=MSGPACK)
    bob.identity, ann.identity, packed.identity = "bob", "ann", "bob"
    rig.fanout.deliver(
        {
            KEY: [
                b"1",
                addressed(2, Selector(only_identity="bob")),
                b"3",
                addressed(4, Selector(not_identity="bob")),
                addressed(5, Selector(not_connection=bob.id)),
                addressed(6, Selector(only_identity="nobody")),
                b"7",
            ]
        }
    )
    assert rig.got(bob) == [1, 2, 3, 7]
    assert rig.got(ann) == [1, 3, 4, 5, 7]
    assert [write[-1] for write in rig.wires[packed].writes] == [1, 2, 3, 5, 7]


def test_publications_for_all_are_one_write_despite_one_addressed_to_others() -> None:
    rig = Rig()
    bob = rig.subscriber()
    rig.fanout.deliver({KEY: [b"1", b"2", addressed(3, Selector(only_identity="ann"))]})
    assert rig.got(bob) == [1, 2]
    assert len(rig.wires[bob].writes) == 1


def test_poison_among_addressed_ones_is_counted_by_its_kind() -> None:
    rig = Rig()
    bob = rig.subscriber()
    poison = [MARK + b"9 x\n1", MARK + b"2 j [\n1", write_addressed(b"NaN", Selector()), MARK + b'2 j {"new":"x"}\n1']
    rig.fanout.deliver({KEY: [b"1", *poison, b"2"]})
    assert rig.got(bob) == [1, 2]
    assert (rig.drops("unknown_version"), rig.drops("invalid")) == (2, 2)


def test_only_publications_without_position_and_address_count_as_unsequenced() -> None:
    rig = Rig()
    bob = rig.subscriber()
    rig.fanout.deliver({KEY: [b"1", addressed(2, Selector()), MARK + b"1 e:1:t t0 j\n3"]})
    assert rig.got(bob) == [1, 2, 3]
    assert rig.sample("snorky_unsequenced_publications_total") == 1


async def test_client_that_leaves_while_its_pass_is_queued_gets_nothing_more() -> None:
    rig = Rig(chunk=3)
    many = [rig.subscriber(OTHER) for _ in range(4)]
    leaver, stayer = rig.subscriber(), rig.subscriber()
    rig.fanout.deliver({OTHER: [b"1"], KEY: [b"2"]})
    rig.hub.remove(leaver, KEY)
    await settle()
    assert rig.got(many[3], OTHER) == [1]
    assert (rig.got(leaver), rig.got(stayer)) == ([], [2])


# -- buffering subscribers --------------------------------------------------------------------------------------------


def test_publications_for_a_buffering_client_are_queued_in_order() -> None:
    rig = Rig()
    other = rig.subscriber()
    wire = FakeTransport()
    held = Connection(wire, JSON, node_id="n", serial=99)
    held.identity = "bob"
    rig.wires[held] = wire
    rig.hub.add(held, KEY, Template("s", {"in": KEY, "is": PAYLOAD}), is_held=True)
    rig.fanout.deliver(
        {KEY: [b"1", addressed(2, Selector(only_identity="bob")), addressed(3, Selector(not_identity="bob"))]}
    )
    assert rig.got(other) == [1, 3]
    assert wire.writes == []
    held.write(b"".join(rig.hub.release(held, KEY)))
    rig.fanout.deliver(numbers(4))
    assert rig.got(held) == [1, 2, 4]
    assert rig.hub.release(held, KEY) == []


def test_a_buffering_client_that_leaves_gets_nothing_more() -> None:
    rig = Rig()
    held = rig.subscriber()
    rig.hub.remove(held, KEY)
    rig.hub.add(held, KEY, Template("s", PAYLOAD), is_held=True)
    rig.fanout.deliver(numbers(1))
    rig.hub.remove(held, KEY)
    assert rig.hub.release(held, KEY) == []
    rig.add(held)
    rig.fanout.deliver(numbers(2))
    assert rig.got(held) == [2]


def test_a_client_with_too_much_buffered_is_a_slow_consumer() -> None:
    rig = Rig()
    wire = FakeTransport()
    held = Connection(wire, JSON, node_id="n", serial=1, outbox_max_bytes=100)
    rig.hub.add(held, KEY, Template("s", PAYLOAD), is_held=True)
    rig.fanout.deliver({KEY: [b'"' + b"x" * 50 + b'"']})
    assert not held.is_closed
    rig.fanout.deliver({KEY: [b'"' + b"x" * 50 + b'"']})
    assert wire.closes == [(4008, "Slow consumer")]
    assert rig.hub.release(held, KEY) == [], "and its memory is released"


# -- recovering subscribers -------------------------------------------------------------------------------------------


class Script:
    """A history filter of one channel that answers what the test sets."""

    def __init__(self) -> None:
        self.heard: list[Publication] = []

    def __contains__(self, key: str) -> bool:
        return key == KEY

    def receive(self, key: str, publications: Sequence[Publication]) -> list[Step]:
        self.heard += publications
        return list(publications)


class FollowingRig(Rig):
    """With a channel that keeps a history."""

    def __init__(self, chunk: int = 1000) -> None:
        super().__init__()
        self.script = Script()
        self.fanout = Fanout(self.hub, self.source, self.metrics, history_filter=self.script, chunk=chunk)

    def recovered(self, dialect: Dialect = JSON) -> Connection:
        wire = FakeTransport()
        connection = Connection(wire, dialect, node_id="n", serial=len(self.wires))
        self.wires[connection] = wire
        self.recover(connection)
        return connection

    def recover(self, connection: Connection) -> None:
        self.hub.add(connection, KEY, Template("s", {"in": KEY, "is": PAYLOAD}), is_pending=True)
        self.hub.go_live(connection, KEY, lambda position: {"gap": str(position)})

    def got_all(self, connection: Connection) -> list[Json]:
        return [decode_json(line) for line in b"".join(self.wires[connection].writes).splitlines()]


def at(offset: int, payload: bytes = b"7") -> Publication:
    return Publication(payload, Position("e", offset, f"t{offset}"), f"t{offset - 1}")


def test_each_shape_gets_its_steps_in_order() -> None:
    rig = FollowingRig()
    plain, other, packed = rig.subscriber(), rig.recovered(), rig.recovered(MSGPACK)
    other.identity = "bob"
    steps: list[Step] = [
        at(1),
        Publication(b'"bare"'),
        Gap(Position("e", 4, "t4")),
        Late(at(2)),
        at(5),
        Publication(b'"bob"', selector=Selector(only_identity="bob")),
        at(6, b"NaN"),
        Publication(b"NaN"),
    ]
    rig.fanout.pass_on(KEY, steps)
    assert rig.got(plain) == [7, "bare", 7, 7]

    def placed(value: Json, offset: int, **more: Json) -> Json:
        place = {"offset": offset, "position": f"e:{offset}:t{offset}"}
        return {"service": "s", "message": {"in": KEY, "is": value, **more, **place}}

    def unplaced(value: Json) -> Json:
        return {"service": "s", "message": {"in": KEY, "is": value}}

    assert rig.got_all(other) == [
        placed(7, 1),
        unplaced("bare"),
        {"gap": "e:4:t4"},
        placed(7, 5),
        unplaced("bob"),
        placed(None, 6, tombstone=True),
    ]
    unpacker = msgpack.Unpacker()
    unpacker.feed(b"".join(rig.wires[packed].writes))
    assert list(unpacker) == [each for each in rig.got_all(other) if each != unplaced("bob")]
    assert rig.drops("invalid") == 2
    assert rig.sample("snorky_unsequenced_publications_total") == 1


def test_followed_channel_is_delivered_as_its_filter_decides() -> None:
    rig = FollowingRig()
    one = rig.recovered()
    sequenced = MARK + b"1 e:1:t1 t0 j\n7"
    rig.fanout.deliver({KEY: [sequenced, MARK + b"9\n1"], OTHER: [b"1"]})
    assert rig.script.heard == [at(1)]
    assert len(rig.got_all(one)) == 1
    assert (rig.drops("unknown_version"), rig.drops("no_subscriber")) == (1, 1)


async def test_a_client_that_resumes_during_a_pass_does_not_get_that_pass() -> None:
    """The client was notified of the gap up to there; it would get those messages twice."""
    rig = FollowingRig(chunk=2)
    crowd = [rig.recovered() for _ in range(5)]
    rig.fanout.pass_on(KEY, [at(1)])
    rig.hub.remove(crowd[4], KEY)
    rig.recover(crowd[4])
    rig.fanout.pass_on(KEY, [at(2)])
    await settle()
    offsets = [[each["message"]["offset"] for each in rig.got_all(one)] for one in crowd]  # type: ignore[index,call-overload]
    assert offsets == [[1, 2]] * 4 + [[2]]


# -- the node's own listener ------------------------------------------------------------------------------------------


def test_listener_gets_the_messages_of_a_read_in_order_before_the_connections() -> None:
    rig = Rig()
    seen: list[object] = []
    subscriber = rig.subscriber()
    rig.wires[subscriber].on_write = lambda: seen.append("written")
    rig.fanout.listen(KEY, lambda batch: seen.append([each.payload for each in batch]))
    rig.fanout.deliver({KEY: [b"1", addressed(2, Selector(only_identity="x")), b"3"], OTHER: [b"4"]})
    assert seen == [[b"1", b"2", b"3"], "written"]


def test_listener_receives_a_channel_without_clients_and_no_invalid_payload() -> None:
    rig = Rig()
    seen: list[bytes] = []
    rig.fanout.listen(KEY, lambda batch: seen.extend(each.payload for each in batch))
    rig.fanout.deliver({KEY: [b"1", b"NaN", MARK + b"9\n1"]})
    rig.fanout.deliver({KEY: [b"NaN"]})
    assert seen == [b"1"]
    assert (rig.drops("invalid"), rig.drops("unknown_version"), rig.drops("no_subscriber")) == (2, 1, 0)
    assert rig.fanout.unlisten(KEY)
    assert not rig.fanout.unlisten(KEY)
    rig.fanout.deliver(numbers(2))
    assert seen == [b"1"]
    assert rig.drops("no_subscriber") == 1


def test_poison_that_a_listener_and_clients_share_is_counted_once() -> None:
    rig = Rig()
    rig.subscriber()
    rig.fanout.listen(KEY, lambda batch: None)
    rig.fanout.deliver({KEY: [b"NaN"]})
    assert rig.drops("invalid") == 1


def test_listener_that_fails_delays_no_client() -> None:
    def fail(batch: object) -> None:
        raise ValueError("a service's fault")

    rig = Rig()
    subscriber = rig.subscriber()
    rig.fanout.listen(KEY, fail)
    with capture_logs() as logs:
        rig.fanout.deliver(numbers(1))
    assert rig.got(subscriber) == [1]
    assert [log["event"] for log in logs] == ["listener failed"]
