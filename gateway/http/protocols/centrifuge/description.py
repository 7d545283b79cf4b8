"""Description of a client for other clients: the claims `info` of its tokens."""

from typing import Final

import structlog

from snorky.gateway.auth.grants import Grants
from snorky.gateway.connection.connection import Connection
from snorky.gateway.errors import InvalidMessage
from snorky.gateway.http.protocols.centrifuge.rendering import PUBSUB, checked_info, client_info
from snorky.gateway.protocol.attributes import entry_data, write_attributes
from snorky.gateway.protocol.codec import Json, channel_key

__all__ = ["Description"]

_log = structlog.get_logger("snorky.centrifuge")
_NONE: Final = (None, None)

_Checked = tuple[Json, Json]  # a claim as it is in the token, and as others get it


class Description:
    """The description of one client. Claims that are too large are left out, and the client remains connected.

    grants: of the node, with the subscription tokens.
    """

    __slots__ = ("_chan_info", "_conn_info", "_connection", "_grants", "_written")

    def __init__(self, connection: Connection, grants: Grants) -> None:
        self._connection = connection
        self._grants = grants
        self._conn_info: _Checked = _NONE
        self._chan_info: _Checked = _NONE  # of the channel that was asked for last
        self._written: tuple[Json, Json, bytes] | None = None  # the last attributes, and both infos in them

    def entry(self, channel: Json) -> Json:
        """Return the data of the roster entry that the client gets now."""
        return entry_data(*self._infos(channel))

    def attributes(self, channel: Json) -> bytes:
        """Return the attributes of the client's publications now. They are written once, until a claim changes."""
        (conn_info, chan_info), known = self._infos(channel), self._written
        if known is None or known[0] is not conn_info or known[1] is not chan_info:
            known = self._written = conn_info, chan_info, self._attributes(entry_data(conn_info, chan_info))
        return known[2]

    def _attributes(self, data: Json) -> bytes:
        identity, connection_id = self._connection.identity, self._connection.id
        try:
            return write_attributes(info=client_info(identity, connection_id, data))
        except InvalidMessage as error:  # it nests too deeply for a reply
            _log.warning("infos of tokens are left out", connection=connection_id, error=str(error))
            return write_attributes(info=client_info(identity, connection_id, None))

    def _infos(self, channel: Json) -> tuple[Json, Json]:
        self._conn_info = self._checked(self._connection.claims.get("info"), self._conn_info)
        grant = self._grants.find(self._connection, channel_key(PUBSUB, channel))
        self._chan_info = self._checked(None if grant is None else grant.token.info, self._chan_info)
        return self._conn_info[1], self._chan_info[1]

    def _checked(self, info: Json, known: _Checked) -> _Checked:
        if info is known[0]:
            return known
        try:
            return info, checked_info(info)
        except InvalidMessage as error:
            _log.warning("info of a token is left out", connection=self._connection.id, error=str(error))
            return info, None
