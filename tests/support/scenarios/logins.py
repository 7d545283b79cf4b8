"""Sites with tokens, and clients that authenticate at them."""

import time
from collections.abc import Callable
from typing import Any

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.tokens import FixedKey, Key, Keys, Verifier
from snorky.gateway.config.auth import Auth
from snorky.gateway.metrics import Metrics
from tests.support.clients.raw_ws import RawClient
from tests.support.scenarios.site import RunningSite
from tests.support.scenarios.tokens import SECRET

FIXED = FixedKey(Key("HS256", SECRET.encode()))


AUTH = Auth(hmac_secret=SECRET.encode(), leeway_s=0.0, timeout_s=0.3)


def authenticator(
    *, at_s: float = 0.0, revocations: Any = None, auth: Auth = AUTH, keys: Keys = FIXED
) -> Callable[[Metrics], Authenticator]:
    """Make an authenticator. at_s: how far its clock is ahead, so that a token of a minute is about to expire."""

    def make(metrics: Metrics) -> Authenticator:
        verifier = Verifier(keys, auth)
        clock = lambda: time.time() + at_s  # noqa: E731
        return Authenticator(verifier, metrics=metrics, auth=auth, revocations=revocations, clock=clock)

    return make


def bearer(token: str) -> dict[str, str | None]:
    return {"Authorization": f"Bearer {token}"}


async def whoami(client: RawClient, site: RunningSite) -> str | None:
    """Return the newest connection's identity, once the client is served."""
    await client.say({"service": "echo", "message": "here"})
    assert (await client.message())["message"] == "here"
    return site.connection.identity


async def auth_call(client: RawClient, command: str, token: Any) -> Any:
    return await client.call(command, service="auth", token=token)
