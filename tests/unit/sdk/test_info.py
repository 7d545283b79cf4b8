"""The service `gateway`."""

from typing import Any

import pytest

from snorky.gateway import InfoService, __version__
from tests.support.fakes.fake_wire import JSON, MSGPACK, house


@pytest.mark.parametrize("dialect", [JSON, MSGPACK], ids=["json", "msgpack"])
async def test_info_returns_node_connection_encoding_and_version(dialect: Any) -> None:
    async with house(InfoService()) as built:
        client = built.client(dialect)
        client.send("gateway", {"command": "info", "callId": 1})
        data = {"node": "n1", "connection": "n1.1", "encoding": dialect.name, "version": __version__}
        assert client.envelopes == [{"service": "gateway", "message": {"type": "response", "callId": 1, "data": data}}]


async def test_reply_has_no_call_id_if_the_request_had_none() -> None:
    async with house(InfoService()) as built:
        client = built.client()
        client.send("gateway", {"command": "info"})
        client.send("gateway", {"command": "info", "callId": None})
        assert ["callId" in message for message in client.messages] == [False, True]


@pytest.mark.parametrize("message", [None, 1, "info", [], {}, {"command": "x"}, {"command": ["info"]}])
async def test_anything_else_is_an_unknown_command(message: Any) -> None:
    async with house(InfoService()) as built:
        client = built.client()
        client.send("gateway", message)
        assert client.messages == [
            {"type": "error", "callId": None, "message": "Unknown command", "code": "unknown_command"}
        ]
