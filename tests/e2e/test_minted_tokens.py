"""Tokens of `snorky.client.tokens` and `snorky token` on a node: logins, and subscription tokens that are no logins."""

from typing import Any

import aiohttp

from snorky.client.tokens import Signer
from tests.support.processes.nodes import NodeProcess
from tests.support.scenarios.command_line import snorky
from tests.support.scenarios.tokens import SECRET

ENV = {"SNORKY_AUTH__HMAC_SECRET": SECRET, "SNORKY_AUTH__AUDIENCE": "app"}


async def of_command(*arguments: str) -> str:
    code, output = await snorky("token", *arguments, env=ENV)
    assert code == 0, output
    return output.strip()


async def refresh(socket: aiohttp.ClientWebSocketResponse, token: str) -> Any:
    message = {"command": "refresh", "params": {"token": token}, "callId": 1}
    await socket.send_json({"service": "auth", "message": message})
    return (await socket.receive_json(timeout=30))["message"]


async def test_minted_connection_tokens_log_in_and_subscription_tokens_do_not() -> None:
    signer = Signer(hmac_secret=SECRET, audience="app")
    logins = [signer.connection_token(7), await of_command("~7", "--claim", 'shops=["a"]')]
    others = [signer.subscription_token(7, "news"), await of_command("~7", "--channel", "news")]
    async with NodeProcess.running(ENV) as node, aiohttp.ClientSession() as session:

        def connect(token: str) -> Any:
            return session.ws_connect(node.websocket_url, headers={"Authorization": f"Bearer {token}"})

        for login, other in zip(logins, others, strict=True):
            async with connect(login) as socket:
                for again in logins:
                    assert (await refresh(socket, again))["data"]["identity"] == "~7"
                refused = await refresh(socket, other)
                assert (refused["type"], refused["code"]) == ("error", "invalid_token")
                assert (await socket.receive(timeout=30)).data == 4501
            async with connect(other) as socket:
                assert (await socket.receive(timeout=30)).data == 4501
        async with session.get(f"http://127.0.0.1:{node.private_port}/metrics") as response:
            metrics = await response.text()
    assert 'snorky_authentications_total{outcome="subscription_token"} 4.0' in metrics
