"""Tokens of `snorky.client.tokens` and of `snorky token` have the same claims, and a node's Verifier accepts both."""

import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from snorky.client import tokens as client_tokens
from snorky.client.signing_keys import SigningKey as ClientKey
from snorky.client.tokens import Signer
from snorky.gateway.auth import minting
from snorky.gateway.auth.minting import Minter, SigningKey
from snorky.gateway.auth.tokens import TOKEN_MAX_BYTES, FixedKey, Key, Verifier
from snorky.gateway.config.auth import Auth, _parse_secret
from snorky.gateway.config.secrets import check_visible
from snorky.gateway.errors import InvalidToken
from snorky.gateway.protocol.identities import identity_text
from tests.support.scenarios.tokens import SECRET, Issuer

ISSUERS = {"RS256": Issuer("RS256", "2026-11"), "ES256": Issuer("ES256", None)}
OF_NODES = (
    Auth(),
    Auth(audience="app", issuer="https://shop.example"),
    Auth(identity_claim="user_id", audience="app"),
)
CONNECTION: tuple[tuple[Any, dict[str, Any]], ...] = (
    ("alice", {}),
    ("Ærøskøbing", {"claims": {"shops": ["7", 8, None, True, 1.5], "deep": {"ß": []}}}),
    (7, {"channels": {"orders:7": ["subscribe", "history"], "a=*": ("publish",)}}),
    (-(2**63), {"services": {"chat": {"room:*": ["join"]}, "own": {}}, "channels": {}}),
    ("7", {"token_id": "t-1", "expires_in_s": 90.5}),
)
SUBSCRIPTION: tuple[tuple[Any, Any, dict[str, Any]], ...] = (
    ("alice", "orders:7", {}),
    (None, {"shop": [1, "ü", None]}, {"ops": ["subscribe"]}),
    (7, None, {"service": "chat", "ops": ("join",), "info": {"name": "Ærø"}}),
    ("7", "news", {"service": "pubsub", "ops": ["subscribe", "publish"], "info": [1.5, False], "expires_in_s": 60}),
)


def pem(issuer: Issuer) -> bytes:
    data: bytes = issuer.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return data


def pair(algorithm: str, auth: Auth, now_s: float = 0.0) -> tuple[Signer, Minter]:
    """Make the client's and the gateway's, with the same key and settings. now_s: of the client's clock."""
    common = {"audience": auth.audience, "issuer": auth.issuer, "identity_claim": auth.identity_claim}
    if algorithm == "HS256":
        key = SigningKey.hmac(SECRET.encode())
        return Signer(hmac_secret=SECRET, clock=lambda: now_s, **common), Minter(key, auth)
    issuer = ISSUERS[algorithm]
    key = SigningKey.private(pem(issuer), issuer.key_id)
    signer = Signer(private_key=pem(issuer), key_id=issuer.key_id, clock=lambda: now_s, **common)
    return signer, Minter(key, auth)


def verifier(algorithm: str, auth: Auth) -> Verifier:
    key = Key("HS256", SECRET.encode()) if algorithm == "HS256" else Key.public(ISSUERS[algorithm].public)
    return Verifier(FixedKey(key), auth)


def read(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return jwt.get_unverified_header(token), claims


@pytest.mark.parametrize("auth", OF_NODES, ids=["plain", "audience", "user_id"])
@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256"])
async def test_connection_tokens_of_both_are_equal_and_accepted(algorithm: str, auth: Auth) -> None:
    now_s = time.time()
    signer, minter = pair(algorithm, auth, now_s)
    for identity, options in CONNECTION:
        options = {"token_id": "t", "expires_in_s": 3600, **options}
        both = (
            signer.connection_token(identity, **options),
            minter.connection_token(identity, now_s=now_s, **options),
        )
        assert read(both[0]) == read(both[1])
        for token in both:
            found = await verifier(algorithm, auth).verify(token)
            assert (found.identity, found.token_id) == (identity_text(identity), options["token_id"])


@pytest.mark.parametrize("auth", OF_NODES, ids=["plain", "audience", "user_id"])
@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256"])
async def test_subscription_tokens_of_both_are_equal_and_no_connection_tokens(algorithm: str, auth: Auth) -> None:
    now_s = time.time()
    signer, minter = pair(algorithm, auth, now_s)
    for identity, channel, options in SUBSCRIPTION:
        options = {"token_id": "t", "expires_in_s": 3600, **options}
        both = (
            signer.subscription_token(identity, channel, **options),
            minter.subscription_token(identity, channel, now_s=now_s, **options),
        )
        assert read(both[0]) == read(both[1])
        assert read(both[0])[1].get(auth.identity_claim) == identity
        for token in both:
            with pytest.raises(InvalidToken) as caught:
                await verifier(algorithm, auth).verify(token)
            assert caught.value.reason == ("claim" if identity is None else "subscription_token")


async def test_random_ids_of_both_are_accepted_and_differ() -> None:
    now_s = time.time()
    signer, minter = pair("HS256", Auth(), now_s)
    tokens = [signer.connection_token("a") for _ in range(2)]
    tokens += [minter.connection_token("a", now_s=now_s, expires_in_s=60) for _ in range(2)]
    assert len({(await verifier("HS256", Auth()).verify(token)).token_id for token in tokens}) == 4


def test_limits_and_words_of_both_are_equal() -> None:
    assert client_tokens.TOKEN_MAX_BYTES == TOKEN_MAX_BYTES
    assert client_tokens._RESERVED == minting._RESERVED
    assert client_tokens._ALL == minting.OPERATIONS
    assert client_tokens._PUBSUB == minting._PUBSUB_OPERATIONS


@given(
    st.text(max_size=10)
    | st.integers(-(2**63), 2**64 - 1)
    | st.booleans()
    | st.none()
    | st.floats()
    | st.from_regex(r"~-?[0-9]*x?", fullmatch=True)
    | st.sampled_from(["x" * 255, "x" * 256, "é" * 127, "é" * 128, "\u202ex", "~", "~x", "~²"])
)
def test_both_accept_the_same_identities(identity: Any) -> None:
    signer, minter = pair("HS256", Auth())
    assert accepts(lambda: signer.connection_token(identity)) == accepts(
        lambda: minter.connection_token(identity, now_s=0.0, expires_in_s=60)
    )


@given(
    st.text(min_size=28, max_size=40)
    | st.text("ab", min_size=30, max_size=70)
    | st.text("0123456789abcdef", min_size=31, max_size=64)
    | st.sampled_from(["abcdefghijklmnopqrstuvwxyz0123456789", "-----BEGIN PUBLIC KEY-----" * 2, SECRET, SECRET + "\n"])
)
def test_both_accept_the_same_secrets(secret: str) -> None:
    def of_nodes() -> None:
        check_visible(secret)
        _parse_secret(secret)

    assert accepts(lambda: ClientKey.hmac(secret)) == accepts(of_nodes)


def accepts(call: Any) -> bool:
    try:
        call()
    except (TypeError, ValueError):
        return False
    return True
