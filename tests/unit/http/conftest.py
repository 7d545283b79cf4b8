"""Both ways of a handshake: without aiohttp, and through it."""

import pytest

from snorky.gateway.http.websocket import front_door


def _read_nothing(data: bytes, path: str) -> None:
    """Read no head, so that aiohttp gets every request."""


@pytest.fixture
def through_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door, "read_head", _read_nothing)


@pytest.fixture(params=["front_door", "aiohttp"])
def each_door(request: pytest.FixtureRequest) -> None:
    if request.param == "aiohttp":
        request.getfixturevalue("through_aiohttp")
