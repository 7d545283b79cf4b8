"""The configuration in docs/migrate-from-centrifugo.md, with a client and a backend library of Centrifugo."""

import json
import time
from pathlib import Path
from typing import Any

import cent
import jwt
import pytest

from snorky.gateway.config.settings import load
from snorky.gateway.runtime.gateway import Gateway
from tests.support.clients.centrifuge import CommandFailed, connected
from tests.support.processes.tools import ROOT
from tests.support.scenarios.pages import code_block
from tests.support.scenarios.protocol_nodes import Nodes

PAGE = ROOT / "docs" / "migrate-from-centrifugo.md"
SECRETS = {
    "made by: openssl rand -hex 32, too": "0f" * 8 + "a1b2c3d4" * 4,
    "made by: openssl rand -hex 32": "7e5a" * 4 + "91d2" * 8,
}


def with_secrets(text: str) -> str:
    for placeholder, secret in SECRETS.items():
        text = text.replace(placeholder, secret)
    return text


async def test_configuration_of_the_page_does_what_that_of_centrifugo_does(nodes: Nodes, tmp_path: Path) -> None:
    theirs: Any = json.loads(with_secrets(code_block(PAGE, "json centrifugo", containing="namespaces")))
    config = tmp_path / "snorky.toml"
    config.write_text(with_secrets(code_block(PAGE, "toml centrifugo", containing="[services.pubsub]")))
    settings = load(
        config, {"SNORKY_REDIS_URL": nodes.redis_url, "SNORKY_PUBLIC__PORT": "0", "SNORKY_PRIVATE__PORT": "0"}
    )
    assert settings.problems(insecure=False) == []
    secret, key = theirs["client"]["token"]["hmac_secret_key"], theirs["http_api"]["key"]
    token = jwt.encode({"sub": "42", "exp": time.time() + 60}, secret, algorithm="HS256")
    gateway = await nodes.stack.enter_async_context(Gateway(settings))
    await gateway.until_ready(30)
    api = cent.AsyncClient(f"{gateway.private_urls[0]}/api", api_key=key)
    try:
        async with connected(gateway.public_urls[0], token) as client:
            with pytest.raises(CommandFailed) as failed:
                await client.call("publish", channel="chat:a", data="before")
            assert failed.value.code == 103, "publishing is for subscribers"
            assert (await client.call("subscribe", channel="chat:a"))["recoverable"] is True
            assert (await client.push("chat:a", "join"))["info"]["user"] == "42"
            await client.call("publish", channel="chat:a", data="hello")
            assert (await client.push("chat:a", "pub"))["data"] == "hello"
            assert len((await client.call("presence", channel="chat:a"))["presence"]) == 1
            for channel in ("other:a", "#43"):
                with pytest.raises(CommandFailed):
                    await client.call("subscribe", channel=channel)
            await api.publish(cent.PublishRequest(channel="#42", data="for you"))
            assert (await client.push("#42", "pub"))["data"] == "for you"
    finally:
        await api.close()
