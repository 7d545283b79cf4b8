"""The table of docs/permissions.md by the token: a client of each kind tries its cells, and notes what happened.

    trial = Trial(TransportStage(nodes, ["json"], None), "json")
    await try_tokens(trial)
    assert trial.found == expected()

`Trial` has clients with Snorky's envelopes. Other protocols override what they do in another way.
"""

import itertools
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from tests.support.clients.transports import TransportStage
from tests.support.scenarios.permission_tables import ask, send, table
from tests.support.scenarios.tokens import hmac_token
from tests.support.scenarios.waits import within

__all__ = [
    "BY_IDENTITY",
    "BY_JTI",
    "CONNECTED",
    "ENV",
    "HANDSHAKE",
    "LOGIN",
    "NONE_REQUIRED",
    "OTHER_SECRET",
    "PLACES",
    "REQUIRED",
    "SUBSCRIBE",
    "SUBSCRIBED",
    "Cell",
    "Findings",
    "Trial",
    "closed",
    "expected",
    "past",
    "soon",
    "try_required",
    "try_tokens",
]
