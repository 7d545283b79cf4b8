"""The fan-out: in order, once, isolated from invalid payloads and broken wires; nothing after an unsubscribe."""

import pytest
from structlog.testing import capture_logs

from snorky.gateway.protocol.codec import Encoding, Json, encode_msgpack
from snorky.gateway.protocol.ws_frames import BINARY, TEXT, Dialect
from tests.support.fakes.fake_wire import MSGPACK, settle
from tests.support.scenarios.fan_out_rig import KEY, OTHER, Rig, numbers

# -- once per dialect -------------------------------------------------------------------------------------------


def test_message_is_framed_once_per_dialect_however_many_clients() -> None:
    framed: list[str] = []

    def counting(name: str, encoding: Encoding) -> Dialect:
        def frame(message: bytes) -> bytes:
            framed.append(name)
            return message + b"\n"

        return Dialect(name, encoding, TEXT, frame)

    plain, packed = counting("plain", Encoding.JSON), counting("packed", Encoding.JSON)
    msgpack = counting("msgpack", Encoding.MSGPACK)
    rig = Rig()
    for dialect in (plain, packed, msgpack):
        for _ in range(10):
            rig.subscriber(dialect=dialect)
    rig.fanout.deliver(numbers(1, 2))
    assert sorted(framed) == sorted(["plain", "packed", "msgpack"] * 2)


def test_message_is_encoded_once_per_encoding_however_many_dialects(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[object] = []

    def counting(value: Json) -> bytes:
        encoded.append(value)
        return encode_msgpack(value)

    monkeypatch.setattr("snorky.gateway.delivery.batches.encode_msgpack", counting)
    rig = Rig()
    for name in ("one", "other"):
        rig.subscriber(dialect=Dialect(name, Encoding.MSGPACK, BINARY, lambda message: message))
    rig.fanout.deliver(numbers(1, 2))
    assert encoded == [1, 2]
    assert len({wire.writes[0] for wire in rig.wires.values()}) == 1


def test_all_clients_of_a_dialect_share_the_same_bytes_object() -> None:
    rig = Rig()
    for _ in range(3):
        rig.subscriber()
    rig.fanout.deliver(numbers(1, 2, 3))
    written = [wire.writes for wire in rig.wires.values()]
    assert [len(writes) for writes in written] == [1, 1, 1], "messages of one read are one write"
    assert len({id(writes[0]) for writes in written}) == 1


def test_dialects_get_the_same_in_their_own_encoding() -> None:
    rig = Rig()
    text, binary = rig.subscriber(), rig.subscriber(dialect=MSGPACK)
    rig.fanout.deliver({KEY: [b'{"x": 1.5}', b"[null]"]})
    assert rig.got(text) == [{"x": 1.5}, [None]]
    assert rig.wires[binary].writes == [
        b"\x82\xa7service\xa1s\xa7message\x82\xa2in\xa3s:a\xa2is\x81\xa1x\xcb\x3f\xf8\0\0\0\0\0\0"
        b"\x82\xa7service\xa1s\xa7message\x82\xa2in\xa3s:a\xa2is\x91\xc0"
    ]


def test_publications_without_subscribers_are_counted_and_not_decoded() -> None:
    rig = Rig()
    rig.fanout.deliver({KEY: [b"not JSON", b"1"]})
    assert rig.drops("no_subscriber") == 2
    assert rig.drops("invalid") == 0


# -- poison -----------------------------------------------------------------------------------------------------

POISON = [
    b"",
    b"nope",
    b'{"a":',
    b"NaN",
    b"1e999",
    b"[" * 5000,
    b'"\xff"',
    rb'"\ud800"',
    b"1 2",
    b"\xef\xbb\xbf1",
    b"99999999999999999999999",
    b"[" + b"0," * 10_000 + b"0]",
    b"\x93\x01\x02\x03",
]


@pytest.mark.parametrize("poison", POISON, ids=lambda poison: repr(poison[:12]))
def test_poison_is_dropped_and_counted_and_its_neighbours_arrive_in_order(poison: bytes) -> None:
    rig = Rig()
    one, other, binary = rig.subscriber(), rig.subscriber(OTHER), rig.subscriber(dialect=MSGPACK)
    rig.fanout.deliver({KEY: [b"1", poison, b"2", poison, b"3"], OTHER: [b"4"]})
    assert rig.got(one) == [1, 2, 3]
    assert rig.got(other, OTHER) == [4]
    assert len(rig.wires[binary].writes) == 1
    assert rig.drops("invalid") == 2
    assert rig.sample("snorky_publications_received_total") == 6
    assert rig.sample("snorky_unsequenced_publications_total") == 4


def test_read_of_nothing_but_poison_writes_nothing() -> None:
    rig = Rig()
    one = rig.subscriber()
    rig.fanout.deliver({KEY: POISON})
    assert rig.wires[one].writes == []
    assert rig.drops("invalid") == len(POISON)


def test_publications_above_the_size_limit_are_dropped_and_counted_as_such() -> None:
    rig = Rig()
    one, heard = rig.subscriber(), []
    rig.fanout.listen(OTHER, heard.extend)
    for key in (KEY, OTHER):
        rig.fanout.deliver({key: [b"1", b'"%b"' % (b"x" * 99_999), b"2"]})
        rig.fanout.deliver({key: [b'"%b"' % (b"x" * 99_998)]})
    assert [each if isinstance(each, int) else len(each) for each in rig.got(one)] == [1, 2, 99_998]
    assert [len(each.payload) for each in heard] == [1, 1, 100_000]
    assert rig.drops("too_large") == 2


def test_unknown_version_is_dropped_and_counted_as_such() -> None:
    rig = Rig()
    one = rig.subscriber()
    rig.fanout.deliver({KEY: [b"1", b"\xc19 e:1:t p j\n2", b"3"]})
    assert rig.got(one) == [1, 3]
    assert rig.drops("unknown_version") == 1
    assert rig.drops("invalid") == 0


# -- numbers ----------------------------------------------------------------------------------------------------


async def test_deliveries_and_passes_are_counted() -> None:
    rig = Rig(chunk=2)
    for _ in range(3):
        rig.subscriber()
    rig.subscriber(dialect=MSGPACK)
    rig.fanout.deliver(numbers(1, 2))
    await settle()
    assert rig.sample("snorky_deliveries_total") == 8
    written = sum(len(data) for wire in rig.wires.values() for data in wire.writes)
    assert rig.sample("snorky_sent_bytes_total") == written
    assert rig.sample("snorky_fanout_pass_duration_seconds_count") == 1


async def test_lag_ends_when_the_last_chunk_is_written() -> None:
    rig = Rig(chunk=1)
    for _ in range(4):
        rig.subscriber()
    rig.fanout.expect(KEY, b"7")
    rig.fanout.deliver(numbers(6))
    await settle()
    assert rig.sample("snorky_delivery_latency_seconds_count") == 0, "that was another one"
    rig.fanout.deliver(numbers(7))
    assert rig.sample("snorky_delivery_latency_seconds_count") == 0, "its last client has not got it yet"
    await settle()
    assert rig.sample("snorky_delivery_latency_seconds_count") == 1
    rig.fanout.deliver(numbers(7))
    await settle()
    assert rig.sample("snorky_delivery_latency_seconds_count") == 1, "it was timed already"


def test_lost_probe_is_replaced_by_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("snorky.gateway.delivery.fan_out.perf_counter", lambda: now_s)
    rig = Rig()
    rig.subscriber()
    rig.fanout.expect(KEY, b"1")  # and Redis loses it
    now_s += 5
    rig.fanout.expect(KEY, b"2")
    rig.fanout.deliver(numbers(2))
    assert rig.sample("snorky_delivery_latency_seconds_count") == 0, "one at a time is timed"
    now_s += 6
    rig.fanout.expect(KEY, b"3")
    now_s += 0.2
    rig.fanout.deliver(numbers(3))
    assert rig.sample("snorky_delivery_latency_seconds_sum") == pytest.approx(0.2)


def test_log_names_a_channel_that_is_fed_poison_and_is_not_flooded() -> None:
    rig = Rig()
    rig.subscriber()
    with capture_logs() as logs:
        for _ in range(100):
            rig.fanout.deliver({KEY: [b"secret poison", b"1"]})
    assert [(each["event"], each["channel"], each["reason"]) for each in logs] == [
        ("publication dropped", KEY, "invalid")
    ]
    assert "secret" not in repr(logs)
