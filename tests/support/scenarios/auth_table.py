"""The protocol's auth and auth_backend as scenarios: every command, text and close code.

Identities are new in every run, because revocations persist.
"""

import itertools
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import jwt

from tests.support.scenarios.conformance import (
    SECONDS,
    STRANGER,
    Scenario,
    Step,
    closing,
    no,
    ok,
    says,
    scenario,
    waits,
)
from tests.support.scenarios.envelope_table import refusal
from tests.support.scenarios.tokens import SECRET, claims, forged, hmac_token

__all__ = ["AUTH_SCENARIOS"]

_numbers = itertools.count()


def somebody() -> str:
    return f"user {os.getpid()} {next(_numbers)}"


def known(who: str, identity: str, token: str, command: str = "authenticate") -> Step:
    return ok(who, f"auth.{command}", {"identity": identity, "expiresInS": SECONDS}, token=token)


def bad(who: str, text: str, token: str, code: int = 4501, command: str = "authenticate") -> Step:
    """A token that gets its client disconnected."""
    return closing(no(who, f"auth.{command}", text, token=token), **{who: code})


@scenario(is_apart=True, ann=None, bob=None)
def subscription_tokens() -> Iterator[Step]:
    ann = somebody()
    grant = hmac_token(ann, channel="orders", jti=f"{ann} grant")
    yield known("ann", ann, hmac_token(ann))
    yield no("ann", "pubsub.refreshSubscription", "Not subscribed", channel="orders", token=grant)
    yield no("ann", "pubsub.subscribe", "Invalid token", channel="others", token=grant)
    yield no("ann", "pubsub.subscribe", "Invalid params", channel="orders", token=5)
    late = hmac_token(ann, channel="orders", exp=time.time() - 60)
    yield no("ann", "pubsub.subscribe", "Subscription token expired", channel="orders", token=late)
    yield ok("ann", "pubsub.subscribe", {"expiresInS": SECONDS}, channel="orders", token=grant)
    later = hmac_token(ann, channel="orders", jti=f"{ann} later")
    yield no("ann", "pubsub.refreshSubscription", "Subscription token expired", channel="orders", token=late)
    yield ok("ann", "pubsub.refreshSubscription", {"expiresInS": SECONDS}, channel="orders", token=later)
    yield bad("bob", "Invalid token", grant)  # it is no login
    end = {"type": "unsubscribed", "channel": "orders", "code": "revoked", "reason": "Revoked"}
    yield ok("backend", "auth_backend.revokeToken", None, {"ann": [end]}, jti=f"{ann} later")
    yield no("ann", "pubsub.unsubscribe", "Not subscribed", channel="orders")


@scenario(is_apart=True, ann=None, bob=None, eve=None)
def auth() -> Iterator[Step]:
    ann, bob = somebody(), somebody()
    yield no("ann", "auth.refresh", "Not authenticated", token=hmac_token(ann))
    yield known("ann", ann, hmac_token(ann))
    yield known("ann", ann, hmac_token(ann))  # as refresh
    yield known("ann", ann, hmac_token(ann), "refresh")
    for command in ("auth.authenticate", "auth.refresh"):
        yield no("ann", command, "Already authenticated", token=hmac_token(bob))
        yield no("ann", command, "Invalid params")
        yield no("ann", command, "Invalid params", token=hmac_token(ann), more=1)
        yield no("ann", command, "Invalid params", token=5)
    yield no("ann", "auth.nonsense", "Unknown command")
    yield known("bob", bob, hmac_token(bob))
    yield no("eve", "chat.read", "Not authenticated", channel="room")


@scenario(is_apart=True, ann=None, bob=None, eve=None, joe=None, sue=None, max=None, kim=None, tom=None, zoe=None)
def auth_of_bad_tokens() -> Iterator[Step]:
    tom = somebody()
    yield bad("ann", "Invalid token", "made up")
    yield bad("bob", "Invalid token", hmac_token(somebody(), secret=SECRET[::-1]))
    yield bad("eve", "Invalid token", forged({"alg": "none"}, claims(somebody()), secret=None))
    yield bad("joe", "Token expired", hmac_token(somebody(), exp=time.time() - 60))
    yield bad("sue", "Invalid token", hmac_token(somebody(), exp=None))
    yield bad("max", "Invalid token", jwt.encode(claims(somebody()), SECRET * 2, algorithm="HS512"))
    yield bad("kim", "Invalid token", hmac_token(somebody(), aud="somebody else"))
    yield known("tom", tom, hmac_token(tom))
    yield bad("tom", "Token expired", hmac_token(tom, exp=time.time() - 60), command="refresh")
    # the key is not checked, so that it cannot be guessed this way
    yield no("zoe", "auth.refresh", "Not authenticated", token="made up")


@scenario(is_apart=True, ann=None, bob=None, eve=None)
def auth_ends_with_the_token() -> Iterator[Step]:
    ann, bob = somebody(), somebody()
    soon_s = math.ceil(time.time()) + 1
    yield known("ann", ann, hmac_token(ann, exp=soon_s))
    yield known("bob", bob, hmac_token(bob, exp=soon_s))
    yield known("bob", bob, hmac_token(bob), "refresh")
    yield waits(ann=4501)
    yield ok("eve", "pubsub.publish", channel="auth", message="bob hears the fence behind this: he is still there")


@scenario(is_apart=True, ann=None, ann2=None, bob=None, late=None, again=None)
def auth_backend_revokes_an_identity() -> Iterator[Step]:
    ann, bob = somebody(), somebody()
    old = hmac_token(ann)
    yield known("ann", ann, old)
    yield known("ann2", ann, hmac_token(ann))
    yield known("bob", bob, hmac_token(bob))
    yield closing(ok("backend", "auth_backend.revoke", identity=ann), ann=4503, ann2=4503)
    yield bad("late", "Revoked", old, 4503)
    yield known("again", ann, hmac_token(ann))
    yield known("bob", bob, hmac_token(bob), "refresh")


@scenario(is_apart=True, ann=None, ann2=None, late=None)
def auth_backend_revokes_a_token() -> Iterator[Step]:
    ann, token_id = somebody(), somebody()
    token = hmac_token(ann, jti=token_id)
    yield known("ann", ann, token)
    yield known("ann2", ann, hmac_token(ann, jti=somebody()))
    yield closing(ok("backend", "auth_backend.revokeToken", jti=token_id), ann=4503)
    yield bad("late", "Revoked", token, 4503)
    yield bad("ann2", "Revoked", token, 4503, "refresh")


@scenario(is_apart=True, ann=None, ann2=None, bob=None, bob2=None, eve=None)
def auth_backend_disconnects() -> Iterator[Step]:
    ann, bob, eve = somebody(), somebody(), somebody()
    for who, identity in (("ann", ann), ("ann2", ann), ("bob", bob), ("bob2", bob), ("eve", eve)):
        yield known(who, identity, hmac_token(identity))
    yield closing(ok("backend", "auth_backend.disconnect", identity=ann), ann=4500, ann2=4500)
    yield closing(ok("backend", "auth_backend.disconnect", identity=bob, reconnect=True), bob=4000, bob2=4000)
    yield known("eve", eve, hmac_token(eve), "refresh")


@scenario(is_apart=True)
def auth_backend_params() -> Iterator[Step]:
    values: list[Any] = [5.5, True, None, "", "x" * 256, ["ann"]]
    for command, name in (("revoke", "identity"), ("revokeToken", "jti"), ("disconnect", "identity")):
        yield no("backend", f"auth_backend.{command}", "Invalid params")
        for value in values:
            yield no("backend", f"auth_backend.{command}", "Invalid params", **{name: value})
    yield no("backend", "auth_backend.revokeToken", "Invalid params", jti=5)  # an identity may be an integer
    yield no("backend", "auth_backend.disconnect", "Invalid params", identity=somebody(), reconnect="yes")
    yield no("backend", "auth_backend.nonsense", "Unknown command")


# -- authentication required -------------------------------------------------------------------------------------------


@scenario("required", ann="ann", bob=STRANGER, eve=STRANGER)
def auth_is_required() -> Iterator[Step]:
    bob = somebody()
    yield no("bob", "pubsub.subscribe", "Not authenticated", channel="news")
    yield no("bob", "messaging.listParticipants", "Not authenticated")
    yield no("bob", "datasync.acquireSubscription", "Not authenticated", token="x" * 32)
    yield no("bob", "pubsub.nonsense", "Not authenticated")  # an unauthenticated client learns nothing
    yield says(
        "bob",
        {"service": "gateway", "message": {"command": "nonsense", "callId": "open to all"}},
        refusal("gateway", "Unknown command", "open to all"),
    )
    yield known("bob", bob, hmac_token(bob))
    yield ok("bob", "pubsub.subscribe", channel="news")
    heard = {"bob": [{"type": "message", "channel": "news", "message": 1}]}
    yield ok("ann", "pubsub.publish", None, heard, channel="news", message=1)
    yield waits(eve=4502)
    yield ok("bob", "pubsub.unsubscribe", channel="news")


@scenario("keyless", ann=None)
def auth_without_keys() -> Iterator[Step]:
    yield no("ann", "auth.authenticate", "Tokens are not configured", token=hmac_token("ann"))
    yield no("ann", "auth.refresh", "Not authenticated", token=hmac_token("ann"))


AUTH_SCENARIOS: tuple[Scenario, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Scenario))
