"""Slots of keys, as the specification of Redis Cluster has them; and keys of commands."""

import pytest

from snorky.gateway.redis.cluster.slots import key_of, slot_of
from snorky.gateway.redis.connection.resp import command


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 0x31C3),  # the specification's own example
        (b"foo", 12182),
        (b"", 0),
        (b"{user1000}.following", slot_of(b"user1000")),
        (b"foo{{bar}}zap", slot_of(b"{bar")),
        (b"foo{bar}{zap}", slot_of(b"bar")),
    ],
)
def test_slots_are_those_of_the_specification(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


def test_empty_braces_are_no_tag() -> None:
    assert slot_of(b"foo{}{bar}") not in (slot_of(b""), slot_of(b"bar"))
    assert slot_of(b"foo{bar") != slot_of(b"bar")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ((b"GET", b"a\r\nb"), b"a\r\nb"),
        ((b"SPUBLISH", b"", b"x"), b""),
        ((b"EVALSHA", b"0" * 40, b"2", b"k1", b"k2", b"argument"), b"k1"),
        ((b"EVAL", b"return {1,\r\n2}", b"1", b"k"), b"k"),
        ((b"EVAL", b"return 1", b"0"), None),
        ((b"XREAD", b"BLOCK", b"1800", b"STREAMS", b"k1", b"k2", b"1-0", b"0-0"), b"k1"),
        ((b"FUNCTION", b"LIST"), None),
        ((b"PING",), None),
    ],
)
def test_the_first_key_of_a_command_is_found(words: tuple[bytes, ...], key: bytes | None) -> None:
    assert key_of(command(*words)) == key
