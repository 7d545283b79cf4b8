"""Attributes of a publication: its publisher and its tags. And the infos about a client in its roster entry. Pure.

    {"info": {"user": USER, "client": ID, "conn_info": JSON, "chan_info": JSON}, "tags": {NAME: TEXT}}

All may be missing but `user` ("" = none) and `client`. Only protocols that have attributes deliver them. They are
written in ASCII without blanks, so that they are one word of a header (`publication.py`).
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.channel_names import Json
from snorky.gateway.protocol.codec import encode_json

__all__ = ["ATTRIBUTES", "entry_data", "infos_in", "read_attributes", "write_attributes"]

ATTRIBUTES: Final = ("info", "tags")
_READ_MAX: Final = 64  # in the cache; a client publishes many times with the same ones
_PAIR: Final = {"conn_info", "chan_info"}


class _Info(msgspec.Struct):
    user: str
    client: str
    conn_info: Any = msgspec.UNSET
    chan_info: Any = msgspec.UNSET


class _Attributes(msgspec.Struct):
    info: _Info | msgspec.UnsetType = msgspec.UNSET
    tags: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Attributes).decode


def write_attributes(*, info: Mapping[str, Json] | None = None, tags: Mapping[str, str] | None = None) -> bytes:
    """Write attributes; b"" if there are none.

    Raises InvalidMessage: they are not strict JSON, or nest too deeply for a reply.
    """
    found = {name: value for name, value in zip(ATTRIBUTES, (info, tags), strict=True) if value}
    if not found:
        return b""
    _demand_strict(found)
    return json.dumps(found, separators=(",", ":")).replace(" ", "\\u0020").encode()


@lru_cache(_READ_MAX)
def read_attributes(written: bytes) -> Mapping[str, Any]:
    """Read attributes as the object above; without those that this node does not know, and {} if they are malformed.

    The caller must not change the result.
    """
    try:
        found: dict[str, Any] = msgspec.to_builtins(_decode(written)) if written else {}
        _demand_strict(found)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InvalidMessage):
        return {}
    return found


def entry_data(conn_info: Json, chan_info: Json = None) -> Json:
    """Return the data of a client's roster entry, which contain both infos; without `chan_info` they are `conn_info`.

    Nodes of earlier versions know `conn_info` only.
    """
    if chan_info is None and not _is_pair(conn_info):
        return conn_info
    return {"conn_info": conn_info, "chan_info": chan_info}


def infos_in(data: Json) -> tuple[Json, Json]:
    """Return both parts of the data of a roster entry, `conn_info` and `chan_info`."""
    return (data["conn_info"], data["chan_info"]) if isinstance(data, dict) and _is_pair(data) else (data, None)


def _is_pair(data: Json) -> bool:
    return isinstance(data, dict) and data.keys() == _PAIR


def _demand_strict(found: dict[str, Any]) -> None:
    encode_json([[[[[[found]]]]]])  # a reply puts them into as many containers
