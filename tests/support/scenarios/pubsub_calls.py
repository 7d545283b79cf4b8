"""Calls of the service pubsub, and what its clients received."""

from typing import Any

from tests.support.fakes.fake_wire import Client, until


def call(client: Client, command: str, call_id: Any = 1, service: str = "pubsub", **params: Any) -> None:
    client.send(service, {"command": command, "params": params, "callId": call_id})


async def ask(client: Client, command: str, service: str = "pubsub", **params: Any) -> Any:
    """Send one request and return its answer."""
    call_id = f"{command} {len(client.messages)}"
    call(client, command, call_id, service, **params)
    await until(lambda: any(message.get("callId") == call_id for message in client.messages))
    (answer,) = [message for message in client.messages if message.get("callId") == call_id]
    del answer["callId"]
    return answer


def notifications(client: Client) -> list[Any]:
    return [message for message in client.messages if message["type"] == "message"]


NULL = {"type": "response", "data": None}


def error(text: str, code: str) -> dict[str, Any]:
    return {"type": "error", "message": text, "code": code}
