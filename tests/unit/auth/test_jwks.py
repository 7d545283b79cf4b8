"""Keys of a JWKS document: one fetch at a time, a refetch when keys rotate, none for invented key ids."""

import asyncio
import base64
import json
from typing import Any

import pytest

from snorky.gateway.auth.jwks import (
    MAX_AGE_S,
    PATIENCE_S,
    REFETCH_S,
    RETRY_S,
    STALE_MAX_S,
    KeyCache,
    KeysUnavailable,
    read_keys,
)
from snorky.gateway.errors import BrokerUnavailable, InvalidToken
from tests.support.scenarios.tokens import Issuer

OLD, NEW, RSA = Issuer(key_id="old"), Issuer(key_id="new"), Issuer("RS256", key_id="rsa")


def document(*issuers: Issuer) -> bytes:
    return json.dumps({"keys": [issuer.jwk() for issuer in issuers]}).encode()


class Endpoint:
    """A fetch function: returns a document, or None for a failure."""

    def __init__(self, *issuers: Issuer) -> None:
        self.answer: bytes | None = document(*issuers)
        self.requests = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.now_s = 1000.0
        self.cache = KeyCache(self.fetch, clock=lambda: self.now_s)

    async def fetch(self) -> bytes:
        self.requests += 1
        await self.gate.wait()
        if self.answer is None:
            raise KeysUnavailable("down")
        return self.answer

    async def is_known(self, key_id: str | None, algorithm: str = "ES256") -> bool:
        try:
            return bool(await self.cache.find(key_id, algorithm))
        except InvalidToken as error:
            assert error.reason == "key"
            return False


async def test_a_thousand_concurrent_callers_are_one_request() -> None:
    endpoint = Endpoint(OLD)
    endpoint.gate.clear()
    waiting = [asyncio.create_task(endpoint.is_known("old")) for _ in range(1000)]
    await asyncio.sleep(0)
    endpoint.gate.set()
    assert all(await asyncio.gather(*waiting))
    assert endpoint.requests == 1
    assert await endpoint.is_known("old") and endpoint.requests == 1


async def test_a_cancelled_caller_does_not_cancel_the_others_request() -> None:
    endpoint = Endpoint(OLD)
    endpoint.gate.clear()
    first, second = (asyncio.create_task(endpoint.is_known("old")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    endpoint.gate.set()
    assert await second and endpoint.requests == 1


async def test_a_new_key_is_found_when_keys_rotate() -> None:
    endpoint = Endpoint(OLD)
    assert await endpoint.is_known("old")
    endpoint.answer = document(OLD, NEW)
    endpoint.now_s += REFETCH_S
    assert await endpoint.is_known("new") and await endpoint.is_known("old")
    assert endpoint.requests == 2


async def test_ids_that_are_made_up_are_one_request_in_a_while() -> None:
    endpoint = Endpoint(OLD)
    assert await endpoint.is_known("old")
    for number in range(1000):
        assert not await endpoint.is_known(f"made up {number}")
    assert endpoint.requests == 1, "fetched a moment ago"
    endpoint.now_s += REFETCH_S
    found = await asyncio.gather(*(endpoint.is_known(f"made up {number}") for number in range(1000)))
    assert not any(found) and endpoint.requests == 2


async def test_a_withdrawn_key_is_good_no_longer_than_the_documents_age() -> None:
    endpoint = Endpoint(OLD, NEW)
    assert await endpoint.is_known("old")
    endpoint.answer = document(NEW)
    endpoint.now_s += MAX_AGE_S - 1
    assert await endpoint.is_known("old")
    endpoint.now_s += 1
    assert not await endpoint.is_known("old") and await endpoint.is_known("new")


async def test_known_keys_outlive_an_outage_for_a_limited_time() -> None:
    endpoint = Endpoint(OLD)
    assert await endpoint.is_known("old")
    endpoint.answer = None
    endpoint.now_s += MAX_AGE_S
    assert await endpoint.is_known("old") and endpoint.requests == 2
    assert await endpoint.is_known("old") and endpoint.requests == 2, (
        "an endpoint that failed is not asked again at once"
    )
    endpoint.now_s += STALE_MAX_S - MAX_AGE_S
    with pytest.raises(BrokerUnavailable):
        await endpoint.cache.find("old", "ES256")


async def test_an_issuer_that_hangs_delays_no_login_of_a_known_key() -> None:
    endpoint = Endpoint(OLD)
    assert await endpoint.is_known("old")
    endpoint.gate.clear()
    endpoint.now_s += MAX_AGE_S
    # the gate stays closed: a caller that waited for the document would wait indefinitely
    async with asyncio.timeout(30.0):
        assert await endpoint.is_known("old")
        endpoint.now_s += PATIENCE_S
        assert all(await asyncio.gather(*(endpoint.is_known("old") for _ in range(1000))))
    assert endpoint.requests == 2
    endpoint.answer = document(NEW)
    endpoint.gate.set()
    assert await endpoint.is_known("new"), "a caller with an unknown key waits for the running request"
    assert not await endpoint.is_known("old") and endpoint.requests == 2


async def test_after_a_failure_no_caller_waits_for_the_retry() -> None:
    endpoint = Endpoint(OLD)
    assert await endpoint.is_known("old")
    endpoint.answer = None
    endpoint.now_s += MAX_AGE_S
    assert await endpoint.is_known("old")
    endpoint.gate.clear()
    endpoint.now_s += RETRY_S
    finding = asyncio.ensure_future(endpoint.cache.find("old", "ES256"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert finding.done() and endpoint.requests == 3
    endpoint.now_s += STALE_MAX_S
    waiting = asyncio.ensure_future(endpoint.cache.find("old", "ES256"))
    endpoint.gate.set()
    with pytest.raises(BrokerUnavailable):
        await waiting


async def test_without_any_key_tokens_are_refused_and_requests_are_limited() -> None:
    endpoint = Endpoint()
    endpoint.answer = None
    for _ in range(1000):
        with pytest.raises(BrokerUnavailable):
            await endpoint.cache.find("old", "ES256")
    assert endpoint.requests == 1
    endpoint.answer = document(OLD)
    endpoint.now_s += RETRY_S
    assert await endpoint.is_known("old")


async def test_a_document_that_has_become_none_does_not_take_the_keys_away() -> None:
    endpoint = Endpoint(OLD)
    assert await endpoint.is_known("old")
    endpoint.answer = b"<html>we are being repaired</html>"
    endpoint.now_s += MAX_AGE_S
    assert await endpoint.is_known("old")


async def test_a_token_without_a_key_id_is_of_the_only_key_that_there_is() -> None:
    assert await Endpoint(OLD, RSA).is_known(None)
    assert not await Endpoint(OLD, NEW).is_known(None)


async def test_stopping_ends_a_request_under_way() -> None:
    endpoint = Endpoint(OLD)
    endpoint.gate.clear()
    waiting = asyncio.create_task(endpoint.is_known("old"))
    await asyncio.sleep(0)
    await endpoint.cache.stop()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def secret() -> dict[str, Any]:
    return {"kty": "oct", "kid": "oct", "k": base64.urlsafe_b64encode(b"x" * 32).decode()}


def weak() -> dict[str, Any]:
    from cryptography.hazmat.primitives.asymmetric import rsa

    issuer = Issuer("RS256", key_id="weak")
    issuer.public = rsa.generate_private_key(65537, 1024).public_key()
    return issuer.jwk()


@pytest.mark.parametrize(
    "entry",
    [
        secret(),
        weak(),
        OLD.jwk(use="enc"),
        OLD.jwk(alg="ES512"),
        RSA.jwk(alg="RS512"),
        RSA.jwk(alg="HS256"),
        OLD.jwk(d="AAAA"),
        OLD.jwk(x="AAAA"),
        OLD.jwk(kid=7),
        OLD.jwk(crv="P-521"),
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
        {"kty": "RSA"},
        {"kty": ["RSA"]},
        {},
        None,
        7,
    ],
    ids=lambda entry: " ".join(sorted(entry)) if isinstance(entry, dict) else repr(entry),  # keys are new every time
)
def test_unusable_keys_are_skipped(entry: Any) -> None:
    assert list(read_keys(json.dumps({"keys": [entry, NEW.jwk()]}).encode())) == ["new"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": {}}', '{"keys": []}', '{"keys": [7]}', "[" * 100_000])
def test_an_invalid_document_is_reported_as_such(text: str) -> None:
    with pytest.raises(KeysUnavailable):
        read_keys(text.encode())
