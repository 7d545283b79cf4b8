"""Refusal: what the error replies of Redis mean."""

import hiredis
import pytest

from snorky.gateway.redis.connection.refusals import Refusal, is_undone, refusal_of


@pytest.mark.parametrize(
    ("text", "refusal", "is_elsewhere", "undone"),
    [
        ("MOVED 5 127.0.0.1:7000", Refusal.MOVED, True, False),
        ("ASK 5 127.0.0.1:7000", Refusal.MOVED, True, False),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Refusal.NO_SERVER, True, True),
        ("CLUSTERDOWN Hash slot not served", Refusal.NO_SERVER, True, True),
        ("NOSCRIPT No matching script. Please use EVAL.", Refusal.NO_SCRIPT, False, True),
        ("READONLY You can't write against a read only replica.", Refusal.READ_ONLY, False, True),
        ("READONLY You can't write against a read only replica. script: 1f", Refusal.READ_ONLY, False, False),
        ("NOPERM No permissions to access a channel", Refusal.NO_PERMISSION, False, True),
        ("OOM command not allowed when used memory > 'maxmemory'.", Refusal.UNABLE, False, True),
        ("ERR MOVED is no code here", Refusal.OTHER, False, False),
        ("", Refusal.OTHER, False, False),
    ],
)
def test_the_code_decides(text: str, refusal: Refusal, is_elsewhere: bool, undone: bool) -> None:
    assert refusal_of(text) is refusal_of(hiredis.ReplyError(text)) is refusal
    assert refusal.is_elsewhere is is_elsewhere
    assert is_undone(text) is undone
