"""Foreign protocols: what connections receive that do not speak Snorky's own protocol. Pure.

A foreign protocol translates. What its client sends becomes envelopes, so the same services, rules and limits apply.
What services send is translated back in two places:

- A `Rendering` encodes what many clients receive, once for all of them. There is one for each form of a protocol.
- A `Frontend` translates what one client receives: replies, errors, notices. There is one for each connection.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from snorky.gateway.protocol.channel_names import Json
from snorky.gateway.protocol.publication import Change, Position

__all__ = ["DescribesClient", "EncodePublication", "Frontend", "Rendering", "SubscribeTerms", "attributes_by"]

# Encodes a publication. Arguments: the payload, JSON that is already checked; the position, None if it has none; the
# attributes as written by `attributes.py`, b"" if it has none.
EncodePublication = Callable[[bytes, Position | None, bytes], bytes | None]


@dataclass(frozen=True, slots=True)
class SubscribeTerms:
    """How a frontend subscribes its client to a channel; it sends them in place of a subscription token.

    operations: that it has found permitted, by a signature. member, data: the client's entry in the channel's roster;
    member None = by its identity. lists_members: the reply has `members`, their data by their names. replays_last: the
    reply has the last message, if the channel keeps one.
    """

    operations: frozenset[str] = frozenset()
    member: str | None = None
    data: Any = None
    lists_members: bool = False
    replays_last: bool = False

    @classmethod
    def of(cls, frontend: "Frontend | None", channel: Json) -> "SubscribeTerms":
        """Return the terms of a client whose frontend has sent none: they permit nothing."""
        return cls(data=frontend.description(channel) if isinstance(frontend, DescribesClient) else None)


class Rendering(Hashable, Protocol):
    """Encodes messages to many clients, without framing. Must not raise. Each method may return None: send nothing.

    service: the only one whose channels its clients have; None = of any service. follows_connections: they get `change`
    for each connection that joins or leaves, instead of the services' notices of identities. bears_gaps: they get
    a notice if publications are missing; else their subscription ends.
    """

    @property
    def service(self) -> str | None: ...

    @property
    def follows_connections(self) -> bool: ...

    @property
    def bears_gaps(self) -> bool: ...

    def encoder(self, channel: Json) -> EncodePublication:
        """Return the function that encodes a channel's publications; what they have in common, it encodes now."""

    def change(self, channel: Json, change: Change) -> bytes | None:
        """Encode a change of the channel's roster. Called only if `follows_connections`."""

    def notice(self, envelope: Mapping[str, Any]) -> bytes | None:
        """Encode a message that services send to many clients. envelope: {"service", "message"}."""


class Frontend(Protocol):
    """Translates what services send to one client.

    authenticates: it decides itself what a client without an identity may do where an identity is required.
    """

    @property
    def authenticates(self) -> bool: ...

    def accepts_order(self, channel: Json) -> bool:
        """Return True if the backend can subscribe the client to a channel now."""

    def recovers_from(self, channel: Json) -> str | None:
        """Return the position from which the client recovers a server-side subscription; None = it did not say."""

    def take(self, envelope: Mapping[str, Any]) -> bool | None:
        """Process a message of another node that is for the protocol itself. None = it is a message to the client.

        False: it is refused, and its sender gets this result.
        """

    def translate(self, envelope: Mapping[str, Any]) -> bytes | None:
        """Encode a message, without framing; None = send nothing. Must not raise.

        envelope: {"service", "message"}; publications in it are bytes, JSON that is already checked. Called again with
        a shorter reply, if the first one has no room in the client's queue.
        """


@runtime_checkable
class DescribesClient(Protocol):
    """A frontend that describes its client to other clients of its channels, without its terms."""

    def description(self, channel: Json) -> Json:
        """Return the data of the roster entry that the client gets now, by `entry_data`; None = none."""

    def attributes(self, channel: Json) -> bytes:
        """Return the attributes of the client's publications now, as written by `attributes.py`."""


def attributes_by(frontend: Frontend | None, channel: Json) -> bytes:
    """Return the attributes of a client's publications to a channel now; b"" if its protocol has none."""
    if frontend is None or not isinstance(frontend, DescribesClient):
        return b""
    return frontend.attributes(channel)
