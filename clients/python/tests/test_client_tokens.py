"""`Signer`: the contents of its tokens, and the values that it refuses to sign."""

import base64
import datetime
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from snorky.client.tokens import Signer

SECRET = "a secret of more than thirty-two bytes"
NOW_S = 1_700_000_000.75

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def pem(key: Any, encryption: Any = None) -> str:
    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return data.decode()


def public_pem(key: Any) -> str:
    data: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data.decode()


def signer(**options: Any) -> Signer:
    return Signer(**{"hmac_secret": SECRET, "clock": lambda: NOW_S, **options})


def part(token: str, number: int) -> Any:
    text = token.split(".")[number]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def header(token: str) -> Any:
    return part(token, 0)


def claims(token: str) -> Any:
    return part(token, 1)


# -- what a token contains -------------------------------------------------------------------------------------


def test_connection_token_has_identity_times_and_an_id_of_its_own() -> None:
    one, other = (claims(signer().connection_token("alice", expires_in_s=60)) for _ in range(2))
    assert one == {"sub": "alice", "iat": 1_700_000_000, "exp": 1_700_000_060, "jti": one["jti"]}
    assert len(one["jti"]) >= 22 and one["jti"] != other["jti"]
    assert claims(signer().connection_token("alice"))["exp"] == 1_700_003_600
    assert claims(signer().connection_token("alice", token_id="t-1"))["jti"] == "t-1"


def test_integers_remain_integers_also_in_another_claim() -> None:
    assert claims(signer().connection_token(7))["sub"] == 7
    token = claims(signer(identity_claim="user_id").connection_token(-7))
    assert token["user_id"] == -7 and "sub" not in token
    assert claims(signer(identity_claim="user_id").subscription_token("7", "news"))["user_id"] == "7"


def test_connection_token_has_claims_permissions_audience_and_issuer() -> None:
    token = signer(audience="app", issuer="https://shop.example").connection_token(
        "alice",
        claims={"shops": ["7", 8], "plan": {"name": "Ærø"}},
        channels={"orders:7": ["subscribe", "history"], "*": ("publish",)},
        services={"chat": {"room:*": ["join"]}, "pubsub": {"news": ["presence"]}},
    )
    read = claims(token)
    for name in ("iat", "exp", "jti"):
        del read[name]
    assert read == {
        "sub": "alice",
        "aud": "app",
        "iss": "https://shop.example",
        "shops": ["7", 8],
        "plan": {"name": "Ærø"},
        "channels": {"orders:7": ["subscribe", "history"], "*": ["publish"]},
        "services": {"chat": {"room:*": ["join"]}, "pubsub": {"news": ["presence"]}},
    }


def test_subscription_token_has_its_channel_and_only_what_was_given() -> None:
    read = claims(signer(audience="app").subscription_token("alice", ["room", 5], expires_in_s=60))
    assert read == {
        "sub": "alice",
        "channel": ["room", 5],
        "iat": 1_700_000_000,
        "exp": 1_700_000_060,
        "jti": read["jti"],
        "aud": "app",
    }
    token = signer().subscription_token(None, None, ops=["subscribe"], service="news", info={"name": "A"})
    read = claims(token)
    assert "sub" not in read and read["channel"] is None
    assert (read["ops"], read["service"], read["info"]) == (["subscribe"], "news", {"name": "A"})


@pytest.mark.parametrize(
    ("options", "algorithm", "key"),
    [
        ({"hmac_secret": SECRET}, "HS256", SECRET.encode()),
        ({"private_key": pem(RSA)}, "RS256", RSA.public_key()),
        ({"private_key": pem(EC).encode()}, "ES256", EC.public_key()),
    ],
    ids=["HS256", "RS256", "ES256"],
)
def test_algorithm_follows_from_the_key(options: dict[str, Any], algorithm: str, key: Any) -> None:
    for key_id in (None, "2026-11"):
        token = Signer(**options, key_id=key_id).connection_token("alice")
        assert header(token) == {"typ": "JWT", "alg": algorithm} | ({} if key_id is None else {"kid": key_id})
        assert json.loads(jwt.PyJWS().decode(token, key, algorithms=[algorithm])) == claims(token)


def test_signer_is_shared_by_threads() -> None:
    one, tokens = Signer(private_key=pem(EC)), []
    threads = [threading.Thread(target=lambda: tokens.append(one.connection_token("alice"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({claims(token)["jti"] for token in tokens}) == 8


def test_nothing_shows_the_key() -> None:
    assert SECRET not in repr(signer()) + repr(vars(signer()))


# -- what is refused -------------------------------------------------------------------------------------------

Call = Callable[[Signer], object]

REFUSED: dict[str, tuple[Call, type[Exception], str]] = {
    "text of an integer": (lambda s: s.connection_token("~7"), ValueError, "reserved for the integer 7"),
    "text of an integer, subscription": (lambda s: s.subscription_token("~-7", "news"), ValueError, "reserved for"),
    "no identity": (lambda s: s.connection_token(None), TypeError, "the identity is NoneType"),
    "identity is empty": (lambda s: s.connection_token(""), ValueError, "1 to 255 bytes"),
    "identity is true": (lambda s: s.connection_token(True), TypeError, "the identity is bool"),
    "identity is long": (lambda s: s.connection_token("é" * 128), ValueError, "1 to 255 bytes"),
    "identity is a line": (lambda s: s.connection_token("alice\n"), ValueError, "control characters"),
    "identity is a surrogate": (lambda s: s.connection_token("\ud800"), ValueError, "control characters"),
    "identity is huge": (lambda s: s.connection_token(2**64), ValueError, "the identity: an integer beyond 64 bits"),
    "no time": (lambda s: s.connection_token("a", expires_in_s=0), ValueError, "expires_in_s must be"),
    "no number": (lambda s: s.connection_token("a", expires_in_s=float("nan")), ValueError, "expires_in_s must be"),
    "two years": (lambda s: s.connection_token("a", expires_in_s=2 * 366 * 86_400), ValueError, "366 days"),
    "time is text": (lambda s: s.connection_token("a", expires_in_s="60"), TypeError, "expires_in_s is str"),
    "claim is a date": (
        lambda s: s.connection_token("a", claims={"day": datetime.date.today()}), TypeError, "the claim 'day': date",
    ),
    "claim is not finite": (
        lambda s: s.connection_token("a", claims={"x": [float("inf")]}), ValueError, "the claim 'x': a number",
    ),
    "claim is a surrogate": (lambda s: s.connection_token("a", claims={"x": "\ud800"}), ValueError, "lone surrogate"),
    "name of a claim": (lambda s: s.connection_token("a", claims={1: 1}), TypeError, "name is int"),
    "claims are a list": (lambda s: s.connection_token("a", claims=[1]), TypeError, "claims: list"),
    "claims are nested": (lambda s: s.connection_token("a", claims={"x": nested(32)}), ValueError, "of each other"),
    "channels are a list": (lambda s: s.connection_token("a", channels=["x"]), TypeError, "channels: list"),
    "operation is text": (lambda s: s.connection_token("a", channels={"x": "history"}), TypeError, "write a list"),
    "no operation": (lambda s: s.connection_token("a", channels={"x": []}), TypeError, "write a list"),
    "unknown operation": (
        lambda s: s.connection_token("a", channels={"x": ["read"]}), ValueError, "unknown operation 'read'; known",
    ),
    "operation of another service": (
        lambda s: s.connection_token("a", channels={"x": ["join"]}), ValueError, "unknown operation 'join'",
    ),
    "operation of others, by name": (
        lambda s: s.connection_token("a", services={"pubsub": {"x": ["join"]}}), ValueError, "unknown operation 'join'",
    ),
    "pattern is empty": (lambda s: s.connection_token("a", channels={"": ["history"]}), ValueError, "1 to 255 char"),
    "pattern is long": (lambda s: s.connection_token("a", channels={"x" * 256: ["history"]}), ValueError, "1 to 255"),
    "pattern has a line": (lambda s: s.connection_token("a", channels={"x\n": ["history"]}), ValueError, "control"),
    "pattern is a number": (lambda s: s.connection_token("a", channels={1: ["history"]}), TypeError, "pattern is int"),
    "pattern has a placeholder": (
        lambda s: s.connection_token("a", channels={"user:{identity}": ["history"]}), ValueError, "write the value",
    ),
    "name of a service": (lambda s: s.connection_token("a", services={"Chat": {}}), ValueError, "a service's name"),
    "service of a subscription": (lambda s: s.subscription_token("a", "x", service=""), ValueError, "a service's name"),
    "services hold a list": (lambda s: s.connection_token("a", services={"chat": []}), TypeError, "chat: list"),
    "channel is long": (lambda s: s.subscription_token("a", "x" * 254), ValueError, "channel: longer than 255"),
    "channel is a date": (lambda s: s.subscription_token("a", datetime.date.today()), ValueError, "channel: date"),
    "channel is not finite": (lambda s: s.subscription_token("a", [float("nan")]), ValueError, "channel: a number"),
    "ops are text": (lambda s: s.subscription_token("a", "x", ops="history"), TypeError, "ops: write a list"),
    "unknown ops": (lambda s: s.subscription_token("a", "x", ops=["join"]), ValueError, "ops: unknown operation"),
    "info is bytes": (lambda s: s.subscription_token("a", "x", info=b"x"), TypeError, "info: bytes is not a JSON"),
    "token id is a number": (lambda s: s.connection_token("a", token_id=1), TypeError, "token_id is int"),
    "token id is empty": (lambda s: s.connection_token("a", token_id=""), ValueError, "token_id must be"),
}  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_gateway_would_refuse_is_refused_before_it_is_signed(what: str) -> None:
    call, kind, text = REFUSED[what]
    with pytest.raises(kind, match=text):
        call(signer())


@pytest.mark.parametrize(
    "name",
    "sub exp iat nbf jti aud iss channel channels service services ops info user_id".split(),
)
def test_claims_that_have_another_meaning_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"claims cannot have '{name}'"):
        signer(identity_claim="user_id").connection_token("alice", claims={name: "x"})


def test_other_operations_are_known_for_other_services() -> None:
    operations = ["subscribe", "publish", "history", "presence", "join", "register", "acquire"]
    assert claims(signer().connection_token("a", services={"own": {"x": operations}}))["services"] == {
        "own": {"x": operations}
    }
    assert claims(signer().subscription_token("a", "x", service="chat", ops=["join"]))["ops"] == ["join"]


def test_token_that_no_header_holds_is_refused() -> None:
    longest = signer().connection_token("a", claims={"x": "y" * 5900})
    assert 7900 < len(longest) <= 8192
    with pytest.raises(ValueError, match=r"the token has \d+ bytes, and a gateway accepts at most 8192"):
        signer().connection_token("a", claims={"x": "y" * 6200})
    with pytest.raises(ValueError, match="the token has"):
        signer().subscription_token("a", "x", info="y" * 6200)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({}, ValueError, "either hmac_secret or private_key"),
        ({"hmac_secret": SECRET, "private_key": pem(EC)}, ValueError, "either hmac_secret or private_key"),
        ({"hmac_secret": "s3cret" * 5}, ValueError, "less than 32 bytes"),
        ({"hmac_secret": b"s3cret" * 9}, TypeError, "hmac_secret is bytes"),
        ({"hmac_secret": public_pem(RSA)}, ValueError, "is a PEM"),
        ({"hmac_secret": f"{SECRET}\n"}, ValueError, "line ends around it"),
        ({"hmac_secret": f"{SECRET}\u200b{SECRET}"}, ValueError, "invisible character, U\\+200B, at position 39"),
        ({"hmac_secret": "ab" * 32}, ValueError, "too easy to guess"),
        ({"private_key": 5}, TypeError, "private_key is int"),
        ({"private_key": "/run/secrets/key.pem"}, ValueError, "is no PEM"),
        ({"private_key": public_pem(EC)}, ValueError, "is a public key"),
        ({"private_key": pem(EC, BestAvailableEncryption(b"x"))}, ValueError, "is encrypted"),
        ({"private_key": pem(EC)[:100]}, ValueError, "is damaged"),
        ({"private_key": pem(rsa.generate_private_key(65537, 1024))}, ValueError, "below 2048 bits"),
        ({"private_key": pem(ec.generate_private_key(ec.SECP384R1()))}, ValueError, "neither an RSA key"),
        ({"private_key": pem(ed25519.Ed25519PrivateKey.generate())}, ValueError, "neither an RSA key"),
        ({"hmac_secret": SECRET, "key_id": ""}, ValueError, "key_id must be"),
        ({"hmac_secret": SECRET, "key_id": 1}, TypeError, "key_id is int"),
        ({"hmac_secret": SECRET, "audience": ""}, ValueError, "audience must be"),
        ({"hmac_secret": SECRET, "issuer": " x"}, ValueError, "issuer has spaces"),
        ({"hmac_secret": SECRET, "identity_claim": "exp"}, ValueError, "identity_claim cannot be 'exp'"),
        ({"hmac_secret": SECRET, "identity_claim": ""}, ValueError, "identity_claim must be"),
    ],
)
def test_keys_and_settings_that_a_gateway_would_refuse_are_refused_without_being_shown(
    options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        Signer(**options)
    assert "s3cret" not in str(caught.value) and "thirty-two" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("missing", ["jwt", "cryptography.hazmat.primitives.serialization"])
def test_missing_package_is_named_when_the_signer_is_made(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'snorky-client\[tokens\]'"):
        Signer(private_key=pem(EC))
