"""Names of Pusher's channels, what their prefixes mean, and the ids of its connections. Pure."""

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["ChannelKind", "connection_id_of", "is_channel", "kind_of", "socket_id_of"]

USER_PREFIX: Final = "#server-to-user-"
USER_ID_MAX: Final = 200  # characters of a user's id in the name of a channel
_PREFIXES: Final = ("private-encrypted-", "private-", "presence-")
_CHANNEL: Final = re.compile(r"[A-Za-z0-9_\-=@,.;]{1,200}")
_SOCKET_ID: Final = re.compile(r"([0-9]{1,15})\.([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class ChannelKind:
    """The properties that a channel has by its name. user: the only one who may subscribe; None = not by the name."""

    is_private: bool
    is_presence: bool
    is_encrypted: bool
    is_cache: bool
    user: str | None = None

    @property
    def needs_signature(self) -> bool:
        """True if the backend signs who may subscribe."""
        return self.is_private or self.is_presence

    @property
    def has_client_events(self) -> bool:
        """True if subscribers may send events to each other. The libraries do not encrypt such events."""
        return self.needs_signature and not self.is_encrypted


def is_channel(name: object) -> bool:
    """Return True if this is the name of a channel."""
    if not isinstance(name, str):
        return False
    if name.startswith(USER_PREFIX):  # the ids of users have other characters too
        return name.isprintable() and 0 < len(name.removeprefix(USER_PREFIX)) <= USER_ID_MAX
    return _CHANNEL.fullmatch(name) is not None


def kind_of(name: str) -> ChannelKind:
    """Read the prefixes of a name."""
    prefix = next((each for each in _PREFIXES if name.startswith(each)), "")
    return ChannelKind(
        is_private=prefix.startswith("private-"),
        is_presence=prefix == "presence-",
        is_encrypted=prefix == "private-encrypted-",
        is_cache=name.startswith("cache-", len(prefix)),
        user=name.removeprefix(USER_PREFIX) if name.startswith(USER_PREFIX) else None,
    )


def socket_id_of(connection_id: str) -> str:
    """Write a connection's id as the libraries expect it: two numbers."""
    node, _, serial = connection_id.partition(".")
    return f"{int(node.removeprefix('n'), 16)}.{serial}"


def connection_id_of(socket_id: object) -> str | None:
    """Undo `socket_id_of`; None: it is not such an id."""
    found = _SOCKET_ID.fullmatch(socket_id) if isinstance(socket_id, str) else None
    return None if found is None else f"n{int(found[1]):012x}.{found[2]}"
