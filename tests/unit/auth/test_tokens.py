"""Tokens to identities: accepted tokens, and a table of attacks that must be refused."""

import json
import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jwt
import pytest

from snorky.gateway.auth.tokens import FixedKey, Identity, Key, Verifier, check_identity
from snorky.gateway.config.auth import Auth
from snorky.gateway.errors import CloseCode, InvalidToken
from tests.support.scenarios.tokens import SECRET, Issuer, claims, forged, hmac_token

HMAC = Key("HS256", SECRET.encode())
RSA, EC = Issuer("RS256"), Issuer("ES256")
HS256 = {"alg": "HS256", "typ": "JWT"}


def verifier(key: Key = HMAC, **auth: Any) -> Verifier:
    return Verifier(FixedKey(key), Auth(**auth))


async def refusal(token: str, key: Key = HMAC, **auth: Any) -> str:
    """Present a token that must be refused; returns the reason."""
    with pytest.raises(InvalidToken) as caught:
        await verifier(key, **auth).verify(token)
    # a slow clock gets corrected, or another node has the right time: the client should retry
    is_early = caught.value.reason == "not_yet_valid"
    assert caught.value.close_code is (CloseCode.RECONNECT if is_early else CloseCode.BAD_TOKEN)
    assert str(caught.value) in ("Invalid token", "Token expired", "Token not valid yet")
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a log would quote PyJWT"
    return caught.value.reason


def signed(key: Any, algorithm: str, identity: Any) -> str:
    """Sign claims that PyJWT's own encoder refuses, such as an integer subject."""
    return jwt.api_jws.encode(json.dumps(claims(identity)).encode(), key, algorithm=algorithm)


# -- what is accepted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "sign"),
    [(HMAC, hmac_token), (Key.public(RSA.public), RSA.token), (Key.public(EC.public), EC.token)],
    ids=["HS256", "RS256", "ES256"],
)
async def test_a_right_token_of_each_algorithm_gives_its_identity(key: Key, sign: Callable[[], str]) -> None:
    assert (await verifier(key).verify(sign())).identity == "alice"


@pytest.mark.parametrize("algorithms", ["HS256 HS256", "RS256 RS256", "RS256 ES256", "ES256 RS256"])
async def test_tokens_of_the_previous_key_are_good_while_keys_are_changed(algorithms: str) -> None:
    pairs = []
    for algorithm in algorithms.split():
        secret = f"{len(pairs)} {SECRET}"
        issuer = Issuer(algorithm) if algorithm != "HS256" else None
        key = Key("HS256", secret.encode()) if issuer is None else Key.public(issuer.public)
        pairs.append((key, hmac_token(secret=secret) if issuer is None else issuer.token()))
    (new, new_token), (old, old_token) = pairs
    both = Verifier(FixedKey(new, old))
    for token in (new_token, old_token):
        assert (await both.verify(token)).identity == "alice"
    with pytest.raises(InvalidToken):
        await Verifier(FixedKey(new)).verify(old_token)
    with pytest.raises(InvalidToken):
        await both.verify(hmac_token(secret="another" * 8))


async def test_expiry_token_id_and_date_are_taken() -> None:
    now_s = math.floor(time.time())
    token = hmac_token(iat=now_s, exp=now_s + 30, jti="t-1")
    assert await verifier(leeway_s=2).verify(token) == Identity("alice", now_s + 30, "t-1", now_s - 2)


async def test_a_token_without_a_date_is_touched_by_every_revocation() -> None:
    assert (await verifier().verify(hmac_token(iat=None))).valid_since_s == -math.inf


@pytest.mark.parametrize(
    ("key", "private"),
    [(HMAC, SECRET.encode()), (Key.public(RSA.public), RSA.private), (Key.public(EC.public), EC.private)],
    ids=["HS256", "RS256", "ES256"],
)
async def test_an_integer_subject_is_an_identity_of_its_own(key: Key, private: Any) -> None:
    assert (await verifier(key).verify(signed(private, key.algorithm, 42))).identity == "~42"
    assert (await verifier(key).verify(signed(private, key.algorithm, "42"))).identity == "42"
    assert await refusal(signed(private, key.algorithm, "~42"), key) == "identity"  # a text is never the integer
    assert await refusal(signed(private, key.algorithm, True), key) == "identity"


async def test_another_claim_may_be_the_identity_and_a_number() -> None:
    token = hmac_token(None, user_id=7)
    assert (await verifier(identity_claim="user_id").verify(token)).identity == "~7"


@pytest.mark.parametrize("audience", ["app", ["other", "app"]])
async def test_audience_and_issuer_that_match_are_accepted(audience: Any) -> None:
    token = hmac_token(aud=audience, iss="https://issuer.example")
    assert await verifier(audience="app", issuer="https://issuer.example").verify(token)


async def test_clocks_may_differ_by_the_leeway() -> None:
    now_s = time.time()
    assert await verifier(leeway_s=5).verify(hmac_token(exp=now_s - 2))
    assert await verifier(leeway_s=5).verify(hmac_token(nbf=now_s + 2, iat=now_s + 2))


# -- attacks ---------------------------------------------------------------------------------------------------


@cache
def attacks(_round: int) -> dict[str, tuple[str, str, Key, dict[str, Any]]]:
    """Build the table again for each test: tokens live a minute, and collection may be half an hour earlier."""
    return {
        # name: (reason, token, key, settings)
        "none": ("algorithm", forged({"alg": "none"}, claims(), secret=None), HMAC, {}),
        "None, spelled otherwise": ("algorithm", forged({"alg": "nOnE"}, claims(), secret=None), HMAC, {}),
        "none, against a key": (
            "algorithm", forged({"alg": "none"}, claims(), secret=None), Key.public(RSA.public), {},
        ),
        "no signature": ("signature", forged(HS256, claims(), secret=None), HMAC, {}),
        "another secret": ("signature", hmac_token(secret="another" * 8), HMAC, {}),
        "public key as a secret": ("algorithm", forged(HS256, claims(), secret=RSA.pem), Key.public(RSA.public), {}),
        "public EC key as a secret": ("algorithm", forged(HS256, claims(), secret=EC.pem), Key.public(EC.public), {}),
        "HS512": ("algorithm", jwt.encode(claims(), SECRET * 2, algorithm="HS512"), HMAC, {}),
        "RS256 where a secret is set": ("algorithm", RSA.token(), HMAC, {}),
        "ES256 where an RSA key is set": ("algorithm", EC.token(), Key.public(RSA.public), {}),
        "RS512 of the right key": (
            "algorithm", jwt.encode(claims(), RSA.private, algorithm="RS512"), Key.public(RSA.public), {},
        ),
        "PS256 of the right key": (
            "algorithm", jwt.encode(claims(), RSA.private, algorithm="PS256"), Key.public(RSA.public), {},
        ),
        "another RSA key": ("signature", Issuer("RS256").token(), Key.public(RSA.public), {}),
        "another EC key": ("signature", Issuer("ES256").token(), Key.public(EC.public), {}),
        "its own key in the header": (
            "signature", Issuer("ES256").token(headers={"jwk": EC.jwk()}), Key.public(EC.public), {},
        ),
        "its own key's address in the header": (
            "signature", Issuer("ES256").token(headers={"jku": "https://evil.example"}), Key.public(EC.public), {},
        ),
        "payload changed": ("signature", ".".join([hmac_token().split(".")[0], *hmac_token("eve").split(".")[1:2],
                                                   hmac_token().split(".")[2]]), HMAC, {}),
        "critical header": ("malformed", forged({**HS256, "crit": ["exp"]}, claims()), HMAC, {}),
        "detached payload": ("malformed", forged({**HS256, "b64": False, "crit": ["b64"]}, ""), HMAC, {}),
        "payload not encoded, and critical": (
            "malformed", forged({**HS256, "b64": True, "crit": ["b64"]}, claims()), HMAC, {},
        ),
        "algorithm is a list": ("malformed", forged({"alg": ["HS256"]}, claims()), HMAC, {}),
        "no algorithm": ("malformed", forged({"typ": "JWT"}, claims()), HMAC, {}),
        "key id is an object": ("malformed", forged({**HS256, "kid": {}}, claims()), HMAC, {}),
        "header is a list": ("malformed", forged("[]", claims()), HMAC, {}),
        "header nests deeply": ("malformed", forged("[" * 4000, claims()), HMAC, {}),
        "payload nests deeply": ("malformed", forged(HS256, "[" * 4000), HMAC, {}),
        "payload is a list": ("malformed", forged(HS256, []), HMAC, {}),
        "expired": ("expired", hmac_token(exp=time.time() - 60), HMAC, {}),
        "expired, and not by the leeway": ("expired", hmac_token(exp=time.time() - 6), HMAC, {"leeway_s": 5}),
        "no expiry": ("claim", hmac_token(exp=None), HMAC, {}),
        "expiry is infinite": ("malformed", forged(HS256, {"sub": "alice", "exp": math.inf}), HMAC, {}),
        "expiry is no number": ("malformed", forged(HS256, {"sub": "alice", "exp": math.nan}), HMAC, {}),
        "expiry is text": ("claim", forged(HS256, {"sub": "alice", "exp": str(int(time.time()) + 60)}), HMAC, {}),
        "expiry is true": ("expired", forged(HS256, {"sub": "alice", "exp": True}), HMAC, {}),
        "expiry is a list": ("malformed", forged(HS256, {"sub": "alice", "exp": [time.time() + 60]}), HMAC, {}),
        "expiry is huge": ("lifetime", forged(HS256, {"sub": "alice", "exp": 10**300}), HMAC, {}),
        "expiry is beyond any float": ("claim", forged(HS256, {"sub": "alice", "exp": 10**400}), HMAC, {}),
        "valid for too long": ("lifetime", hmac_token(exp=time.time() + 120), HMAC, {"token_max_lifetime_s": 100}),
        "not valid yet": ("not_yet_valid", hmac_token(nbf=time.time() + 60), HMAC, {}),
        "issued in the future": ("not_yet_valid", hmac_token(iat=time.time() + 60), HMAC, {}),
        "date is infinite": ("malformed", forged(HS256, claims(iat=-math.inf)), HMAC, {}),
        "wrong audience": ("audience", hmac_token(aud="other"), HMAC, {"audience": "app"}),
        "no audience": ("claim", hmac_token(), HMAC, {"audience": "app"}),
        "audience that is not ours to know": ("audience", hmac_token(aud="app"), HMAC, {}),
        "audience is an object": ("audience", hmac_token(aud={"app": 1}), HMAC, {"audience": "app"}),
        "part of the audience": ("audience", hmac_token(aud="application"), HMAC, {"audience": "app"}),
        "wrong issuer": ("issuer", hmac_token(iss="https://evil.example"), HMAC, {"issuer": "https://issuer.example"}),
        "no issuer": ("claim", hmac_token(), HMAC, {"issuer": "https://issuer.example"}),
        "no identity": ("claim", hmac_token(None), HMAC, {}),
        "identity is empty": ("identity", hmac_token(""), HMAC, {}),
        "identity is an object": ("identity", forged(HS256, claims({"a": 1})), HMAC, {}),
        "identity is true": ("identity", hmac_token(None, uid=True), HMAC, {"identity_claim": "uid"}),
        "identity is too long": ("identity", hmac_token("é" * 128), HMAC, {}),
        "identity has control characters": ("identity", hmac_token("alice\n"), HMAC, {}),
        "identity turns writing around": ("identity", hmac_token("alice\u202e"), HMAC, {}),
        "identity is a lone surrogate": ("identity", forged(HS256, claims("\ud800")), HMAC, {}),
        "subscription token": ("subscription_token", hmac_token(channel="news"), HMAC, {}),
        "subscription token of the channel null": (
            "subscription_token", forged(HS256, {**claims(), "channel": None}), HMAC, {},
        ),
        "token id is a number": ("malformed", forged(HS256, claims(jti=1)), HMAC, {}),
        "empty": ("malformed", "", HMAC, {}),
        "not three parts": ("malformed", "a.b", HMAC, {}),
        "five parts (encrypted)": ("malformed", "a.b.c.d.e", HMAC, {}),
        "not base64": ("malformed", "ä.ö.ü", HMAC, {}),
        "NUL": ("malformed", "\0.\0.\0", HMAC, {}),
        "too long": ("too_long", hmac_token(pad="x" * 8192), HMAC, {}),
    }  # fmt: skip


@pytest.mark.parametrize("what", attacks(0))
async def test_an_attack_is_refused_with_the_right_reason(what: str) -> None:
    reason, token, key, auth = attacks(1)[what]
    assert await refusal(token, key, **auth) == reason


async def test_every_single_change_of_a_token_is_refused() -> None:
    token = EC.token()
    key = Key.public(EC.public)
    for at in range(0, len(token) - 1, 3):  # the last character of base64 may contain unused bits
        other = "A" if token[at] != "A" else "B"
        changed = token[:at] + other + token[at + 1 :]
        try:
            who = await verifier(key).verify(changed)
        except InvalidToken:
            continue
        pytest.fail(f"changed at {at} it was accepted as {who}")


@pytest.mark.parametrize("identity", ["alice", "7", "alice@example.org", "Ærøskøbing", "x" * 255])
def test_an_identity_is_any_short_text_that_can_be_shown(identity: str) -> None:
    assert check_identity(identity) == identity


def test_nothing_shows_a_key() -> None:
    assert SECRET not in repr(HMAC)
    assert SECRET not in repr(verifier())
