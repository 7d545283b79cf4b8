"""gateway/protocol/splicing.py: payloads inside a message, unchanged."""

import json
from typing import Any

import pytest
from msgpack import unpackb  # type: ignore[import-untyped]  # ships no annotations

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import Encoding, encode
from snorky.gateway.protocol.splicing import Compound

READERS = {Encoding.JSON: json.loads, Encoding.MSGPACK: unpackb}


@pytest.mark.parametrize("encoding", Encoding)
def test_payloads_keep_their_place_in_the_message(encoding: Encoding) -> None:
    compound = Compound()
    payloads: list[Any] = [{"x": [1.5, None]}, "text", 0, [], "\\1 \\g<0>"]
    signs = [compound.enclose(json.dumps(each).encode()) for each in payloads]
    compound.value = {"last": signs[4], "all": signs}
    read = READERS[encoding](compound.encode({"around": compound.value, "0": "00000000"}, encoding))
    assert read == {"around": {"last": payloads[4], "all": payloads}, "0": "00000000"}


def test_json_is_inserted_unchanged() -> None:
    compound = Compound()
    sign = compound.enclose(b'{"a" : 1.0}')
    assert compound.encode([sign], Encoding.JSON) == b'[{"a" : 1.0}]'


@pytest.mark.parametrize("encoding", Encoding)
def test_without_payloads_it_is_the_message(encoding: Encoding) -> None:
    assert Compound().encode({"a": [1]}, encoding) == encode({"a": [1]}, encoding)


@pytest.mark.parametrize("payload", [b"", b"NaN", b"{", b'"\xff"', b"[" * 33 + b"]" * 33])
def test_payload_that_is_not_strict_json_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        Compound().enclose(payload)


@pytest.mark.parametrize("encoding", Encoding)
def test_message_around_the_payload_is_checked(encoding: Encoding) -> None:
    with pytest.raises(InvalidMessage):
        Compound().encode({"a": float("nan")}, encoding)
