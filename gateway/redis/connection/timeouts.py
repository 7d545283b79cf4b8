"""RedisTimeouts: how long a node waits for Redis. One object for all parts of a node."""

from dataclasses import dataclass
from typing import Final

__all__ = ["DEFAULT_TIMEOUTS", "RedisTimeouts"]


@dataclass(frozen=True, slots=True)
class RedisTimeouts:
    """Time limits of one node. The documented recovery times hold with the defaults."""

    dial_timeout_s: float = 2.0  # to connect, to log in, and to prepare a connection
    confirm_timeout_s: float = 5.0  # from `subscribe` to its confirmation, including reconnects
    publish_timeout_s: float = 5.0  # from `publish` to the answer, including reconnects
    read_timeout_s: float = 2.0  # for one page of history
    directory_timeout_s: float = 5.0  # for an answer to the directory, and for the receipt of a direct message
    silence_s: float = 2.0  # without a publication, after which a canary is sent
    deadline_s: float = 2.0  # after which the canary counts as lost
    linger_s: float = 1.0  # from the last `unsubscribe` to UNSUBSCRIBE; reloaded pages subscribe again within


DEFAULT_TIMEOUTS: Final = RedisTimeouts()
