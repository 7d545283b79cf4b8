"""Nodes for tests of Centrifuge clients: their settings, and tokens as users of Centrifugo make them."""

import json
import time
from typing import Any, Final

import jwt

from tests.support.scenarios.tokens import SECRET

__all__ = ["ENV", "TOLD", "token"]

TOLD: Final = "kept:told"  # a channel with presence and joins
_RULES = [
    {"match": TOLD, "history": 10, "presence": True, "join_leave": True, "allow_subscribe": "anyone"},
    {"match": "by-token:*", "history": 10, "allow_subscribe": "token", "allow_publish": "token"},
    {"match": "short", "history": 2, "allow_subscribe": "anyone", "allow_publish": "anyone"},
    {"match": "kept:*", "history": 1000, "allow_subscribe": "anyone", "allow_publish": "anyone"},
    {"match": "#*", "history": 10, "allow_subscribe": "nobody", "allow_publish": "subscriber"},
    {"match": "*", "allow_subscribe": "anyone", "allow_publish": "anyone"},
]
ENV = {
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(_RULES),
    "SNORKY_SERVICES__CHAT__CLASS": "snorky.services.chat:ChatService",
    "SNORKY_SERVICES__CHAT__UNMATCHED": "open",
    "SNORKY_BACKEND__CONTROL__CLASS": "snorky.services.control:ControlBackend",
}


def token(identity: str, *, for_s: float = 60, **claims: Any) -> str:
    """Make a token as Centrifugo's users do: a connection token, or with `channel` a subscription token."""
    return jwt.encode({"sub": identity, "exp": time.time() + for_s, **claims}, SECRET, algorithm="HS256")
