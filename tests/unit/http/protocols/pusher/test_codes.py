"""Close codes and statuses: each of Snorky's has one that tells these clients whether to come back."""

import pytest

from snorky.gateway.errors import CloseCode
from snorky.gateway.http.protocols.pusher.codes import PASSING, close_code_of, status_of

AT_ONCE = {CloseCode.GOING_AWAY, CloseCode.RECONNECT, CloseCode.RESYNC}
LATER = {CloseCode.INTERNAL_ERROR, CloseCode.SLOW_CONSUMER}
LIMITS = {CloseCode.TOO_MUCH_BAD_INPUT, CloseCode.LIMIT}  # here Snorky's clients stay away: these know less


@pytest.mark.parametrize("code", CloseCode)
def test_each_code_says_whether_and_when_to_come_back(code: CloseCode) -> None:
    told = close_code_of(code)
    if code in AT_ONCE:
        assert told == 4200
    elif code in LATER | LIMITS:
        assert told == 4100
    elif code >= 4500:
        assert told == 4009, "they do not come back"
    else:
        assert told == code < 4000, "codes of WebSocket itself stay"


@pytest.mark.parametrize("code", [4001, 4007, 4009, 4100, 3000, 1000])
def test_other_codes_stay(code: int) -> None:
    assert close_code_of(code) == code


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("not_authorized", 401),
        ("not_authenticated", 401),
        ("limit_exceeded", 413),
        ("invalid_channel", 400),
        ("anything", 400),
    ],
)
def test_statuses_of_refused_subscriptions(code: str, status: int) -> None:
    assert status_of(code) == status


def test_errors_that_pass_are_those_of_a_node_without_redis_or_time() -> None:
    assert PASSING == {"internal", "rate_limited", "unavailable"}
