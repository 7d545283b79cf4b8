"""Refusal: what an error reply of Redis means, by the code with which its text begins. Pure.

Other modules decide by a Refusal or by `is_undone`, never by the text, which is for logs.
"""

from enum import Enum, auto
from typing import Final

__all__ = ["Refusal", "is_undone", "refusal_of"]


class Refusal(Enum):
    """Why Redis did not execute a command."""

    MOVED = auto()  # another server has the slot
    NO_SERVER = auto()  # no server can execute it at present: the slot is being moved, or has no primary
    NO_SCRIPT = auto()  # Redis does not know this script
    READ_ONLY = auto()  # the server is a replica
    NO_PERMISSION = auto()  # the Redis user may not do this
    UNABLE = auto()  # the server cannot execute it at present, for example because memory is short
    OTHER = auto()  # the command may have failed while it was executed

    @property
    def is_elsewhere(self) -> bool:
        """True if the command must be sent to another server, or to this one later."""
        return self in (Refusal.MOVED, Refusal.NO_SERVER)


_BY_CODE: Final = {
    "MOVED": Refusal.MOVED,
    "ASK": Refusal.MOVED,
    "TRYAGAIN": Refusal.NO_SERVER,
    "CLUSTERDOWN": Refusal.NO_SERVER,
    "NOSCRIPT": Refusal.NO_SCRIPT,
    "READONLY": Refusal.READ_ONLY,
    "NOPERM": Refusal.NO_PERMISSION,
    "NOAUTH": Refusal.UNABLE,
    "OOM": Refusal.UNABLE,
    "NOREPLICAS": Refusal.UNABLE,
    "MISCONF": Refusal.UNABLE,
    "LOADING": Refusal.UNABLE,
    "MASTERDOWN": Refusal.UNABLE,
}
_MAY_BE_DONE: Final = (Refusal.MOVED, Refusal.OTHER)  # MOVED: nodes send the command again, they do not report it
_WITHIN: Final = " script: "  # contained in an error from inside a script, which may have written before it


def refusal_of(error: object) -> Refusal:
    """Classify an error reply. error: the reply, or its text."""
    return _BY_CODE.get(str(error).partition(" ")[0], Refusal.OTHER)


def is_undone(text: str) -> bool:
    """True if Redis rejected a command before executing it. text: of the error."""
    return refusal_of(text) not in _MAY_BE_DONE and _WITHIN not in text
