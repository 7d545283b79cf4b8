"""Hooks: how a node asks the operator's backend whether a client may connect, subscribe or publish.

`snorky.gateway.hooks` asks it by HTTP. A node without hooks has None in place of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

__all__ = ["Answer", "Hooks", "Operation", "Question"]

Operation = Literal["connect", "subscribe", "publish"]
_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """An operation that a client requests. identity: verified, None = anonymous. claims: of its token.

    address: of the client itself, behind trusted proxies. service, channel: of a subscription or publication; service
    is "" for a connection. message: of a publication; any JSON value. is_fresh: an answer to an earlier question must
    not be used.
    """

    operation: Operation
    identity: str | None
    claims: Mapping[str, Any] = field(repr=False)
    address: str
    service: str = ""
    channel: Any = None
    message: Any = field(default=None, repr=False)
    is_fresh: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The backend allows it. For `connect` it may also contain the client's identity.

    identity: None = not said. claims: of that identity. Times are wall-clock seconds; asked_at_s: when the backend was
    asked: revocations before that are known to it.
    """

    identity: str | None = None
    claims: Mapping[str, Any] = field(default_factory=lambda: _EMPTY, repr=False)
    expires_at_s: float = math.inf
    asked_at_s: float = 0.0


class Hooks(Protocol):
    """The hooks of one node."""

    def asks(self, operation: Operation, service: str = "") -> bool:
        """Return True if the backend is to be asked. service: the one that the client uses; "" for `connect`."""

    async def ask(self, question: Question) -> Answer:
        """Ask the backend. Raises HookRefused; HookUnavailable: it gave no usable answer, or too many wait for it."""
