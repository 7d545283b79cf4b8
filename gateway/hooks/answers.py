"""Read what a backend answers to a hook.

200 {"allow": true}      for `connect` also "identity", "claims", "expires_in_s"
200 {"allow": false}     with an optional "reason", for the log
403                      as {"allow": false}
anything else            a failure
"""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from snorky.gateway.contracts.hooks import Answer, Question
from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import decode_json
from snorky.gateway.protocol.identities import identity_text

__all__ = ["ANSWER_MAX_BYTES", "CallFailed", "Verdict", "read_verdict"]

ANSWER_MAX_BYTES: Final = 16_384
REASON_MAX_BYTES: Final = 200
_SAYS_WHO: Final = ("identity", "claims", "expires_in_s")


class CallFailed(Exception):
    """A request got no usable answer. kind: a literal, for logs. detail: more, without any text of the backend."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Verdict:
    """A usable answer: `allowed`, None = no. reason: why not, printable, for the log."""

    allowed: Answer | None
    reason: str = ""


def read_verdict(question: Question, status: int, body: bytes, *, asked_at_s: float) -> Verdict:
    """Read an answer. asked_at_s: wall-clock seconds, before the request was sent. Raises CallFailed."""
    if status == 403:
        return Verdict(None, _reason(_json(body)))
    if status != 200:
        raise CallFailed("status", str(status))
    value = _json(body)
    if not isinstance(value, dict) or not isinstance(value.get("allow"), bool):
        raise CallFailed("not_an_answer", 'no JSON object with "allow": true or false')
    if not value["allow"]:
        return Verdict(None, _reason(value))
    if question.operation != "connect":
        return Verdict(Answer(asked_at_s=asked_at_s))
    return Verdict(_who(question, value, asked_at_s))


def _who(question: Question, value: dict[str, Any], asked_at_s: float) -> Answer:
    """Read who the client is. Raises CallFailed: it contradicts itself, or the client's token."""
    written = {name: value[name] for name in _SAYS_WHO if value.get(name) is not None}
    if not written:
        return Answer(asked_at_s=asked_at_s)
    try:
        identity = identity_text(written.get("identity"))
    except ValueError:
        raise CallFailed("identity", "no valid identity") from None
    if question.identity is not None:  # its token's end and claims apply, and are replaced when it is refreshed
        if written.keys() != {"identity"} or identity != question.identity:
            raise CallFailed("identity", "the client has a token already")
        return Answer(asked_at_s=asked_at_s)
    claims, expires_in_s = written.get("claims", {}), written.get("expires_in_s", math.inf)
    if not isinstance(claims, dict):
        raise CallFailed("claims", "no JSON object")
    if isinstance(expires_in_s, bool) or not isinstance(expires_in_s, int | float) or expires_in_s <= 0:
        raise CallFailed("expires_in_s", "no positive number")
    return Answer(identity, MappingProxyType(claims), asked_at_s + expires_in_s, asked_at_s)


def _json(body: bytes) -> Any:
    try:
        return decode_json(body)
    except InvalidMessage:
        return None


def _reason(value: Any) -> str:
    reason = value.get("reason") if isinstance(value, dict) else None
    if not isinstance(reason, str):
        return ""
    short = reason.encode(errors="replace")[:REASON_MAX_BYTES].decode(errors="ignore")
    return "".join(character if character.isprintable() else " " for character in short)
