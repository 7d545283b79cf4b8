"""Tokens that the gateway refuses to mint. That its tokens are accepted is tested together with the client's."""

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from snorky.gateway.auth.minting import Minter, SigningKey
from snorky.gateway.config.auth import Auth
from tests.support.scenarios.tokens import SECRET

NOW_S = 1_700_000_000.0
PERMITTED = {"now_s": NOW_S, "expires_in_s": 60}
HISTORY = ["history"]

Call = Callable[[Minter], object]


def connection(identity: Any = "alice", **options: Any) -> Call:
    return lambda minter: minter.connection_token(identity, **{**PERMITTED, **options})


def subscription(channel: Any = "news", **options: Any) -> Call:
    return lambda minter: minter.subscription_token("alice", channel, **{**PERMITTED, **options})


REFUSED: dict[str, tuple[Call, str]] = {
    "text of an integer": (connection("~7"), "reserved for the integer 7"),
    "no identity": (connection(""), "an identity is a text"),
    "lifetime of settings": (connection(expires_in_s=101), "valid for 1 to 100 seconds"),
    "no lifetime": (connection(expires_in_s=0), "valid for 1 to 100 seconds"),
    "claim of RFC 7519": (connection(claims={"exp": 1}), "the claim exp"),
    "claim of the settings": (connection(claims={"user_id": 1}), "the claim user_id"),
    "claim with a channel": (connection(claims={"channel": 1}), "the claim channel"),
    "claim that is no JSON": (connection(claims={"x": float("nan")}), "not JSON"),
    "long claim": (connection(claims={"x": "y" * 6200}), "nodes accept at most 8192"),
    "empty pattern": (connection(channels={"": HISTORY}), "1 to 255 characters"),
    "long pattern": (connection(channels={"x" * 256: HISTORY}), "1 to 255 characters"),
    "pattern with a line": (connection(channels={"x\n": HISTORY}), "no control characters"),
    "placeholder": (connection(channels={"{identity}": HISTORY}), "write the value"),
    "unknown operation": (connection(channels={"x": ["read"]}), "unknown operation 'read'"),
    "operation of others": (connection(channels={"x": ["join"]}), "unknown operation 'join'"),
    "no operation": (connection(channels={"x": []}), "no operation is named"),
    "name of a service": (connection(services={"Chat": {"x": HISTORY}}), "a service's name"),
    "service of a subscription": (subscription(service="Chat"), "a service's name"),
    "long channel": (subscription("x" * 254), "no node accepts this channel"),
    "operation of a subscription": (subscription(ops=["join"]), "unknown operation 'join'"),
    "long info": (subscription(info="y" * 6200), "nodes accept at most 8192"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_nodes_would_refuse_is_not_minted(what: str) -> None:
    call, text = REFUSED[what]
    minter = Minter(SigningKey.hmac(SECRET.encode()), Auth(identity_claim="user_id", token_max_lifetime_s=100))
    with pytest.raises(ValueError, match=text):
        call(minter)


def pem(key: Any, encryption: Any = None) -> bytes:
    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return data


EC = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"/run/secrets/key.pem", "no private key in PEM form"),
        (EC.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "no private key in PEM form"),
        (pem(EC)[:100], "no private key in PEM form"),
        (pem(EC, BestAvailableEncryption(b"x")), "is encrypted"),
        (pem(rsa.generate_private_key(65537, 1024)), "is an RSA key below 2048 bits"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "is neither an RSA key nor one of the curve P-256"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "is neither an RSA key nor one of the curve P-256"),
    ],
    ids=["path", "public", "cut", "encrypted", "short", "P-384", "Ed25519"],
)
def test_keys_of_another_kind_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        SigningKey.private(data)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_keys_know_their_public_part_and_show_nothing() -> None:
    assert SigningKey.private(pem(EC)).public_key == EC.public_key()
    secret = SigningKey.hmac(SECRET.encode())
    assert secret.public_key is None and SECRET not in repr(secret)
