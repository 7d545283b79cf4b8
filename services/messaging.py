"""MessagingService: participants with unique names send each other messages, on any node.

Notification: {"type": "message", "sender": NAME, "dest": NAME, "body": BODY}.

Rules:
- A name is any JSON entity, unique in the whole cluster. A client may register several; they are released when it
  disconnects.
- `send` replies once the destination's node has accepted the message.
- A client may register a name that another connection of its own identity has: it takes the name over, and the other
  connection is closed (4010). So a client gets its name back after a crash, before its dead connection is noticed.
"""

from collections.abc import Awaitable, Iterable
from typing import Any, Final

from snorky.gateway import Access, Compound, HookRefused, LimitExceeded, Rules, Service, Unmatched, identity_text
from snorky.services.access_rules import NameRule
from snorky.services.rpc import Request, RPCError, RPCService, is_allowed, rpc_command

__all__ = ["MessagingService"]

OWN_NAME: Final = "{identity}"  # with authentication a client may register its own identity
_ATTEMPTS = 3  # after its owner turned out to be gone, a name may belong to another client


class MessagingService(RPCService):
    """Unique names, and messages between them. names_per_client: maximum; names use memory on the node and in Redis.

    names: a pattern of the names that clients may register, or rules, as NameRule or as tables of the settings; None =
    "{identity}" if the node authenticates clients, else all. unmatched: "open" or "closed", for other names. Override
    `is_name_allowed` to restrict it further; it may be a plain method or a coroutine.
    """

    hook_operations = ("subscribe",)
    reloadable_options = ("names", "unmatched")

    def __init__(
        self,
        name: str = "messaging",
        *,
        names_per_client: int = 100,
        names: str | Iterable[NameRule | dict[str, Any]] | None = None,
        unmatched: Unmatched | None = None,
    ) -> None:
        super().__init__(name)
        self._names_per_client = names_per_client
        self._is_default = names is None and unmatched is None
        self.access = _access(name, names, unmatched)

    def set_authenticating(self, *, is_authenticating: bool) -> None:
        """Without rules, let clients with an identity register only that. See `Service.set_authenticating`."""
        if self._is_default and is_authenticating:
            self.access = _access(self.name, OWN_NAME, None)
        super().set_authenticating(is_authenticating=is_authenticating)

    def adopt_rules(self, other: Service) -> None:
        """As `Service.adopt_rules`. Names that clients have stay theirs."""
        assert isinstance(other, MessagingService)  # noqa: S101 - for the type checker
        super().adopt_rules(other)
        self._is_default = other._is_default

    def is_name_allowed(self, request: Request, name: Any) -> bool | Awaitable[bool]:
        """Return whether this client may register a name; the rules permit it. Unless overridden, it may."""
        return True

    @rpc_command(name="registerParticipant")
    async def register_participant(self, request: Request, name: Any) -> None:
        """Register a name for this connection."""
        if not (self._permits(request, name) and await is_allowed(self.is_name_allowed(request, name))):
            raise RPCError("Name not allowed", "name_not_allowed")
        try:
            await self.ask_backend("subscribe", request.connection, name)
        except HookRefused:
            raise RPCError("Name not allowed", "name_not_allowed") from None
        if self.names.is_held(request.connection, name):
            raise RPCError("Name already registered", "name_already_registered")
        if self.names.count(request.connection) >= self._names_per_client:
            raise LimitExceeded("names_per_client", "Too many names")
        if not await self.names.claim(request.connection, name):
            raise RPCError("Name already registered", "name_already_registered")

    @rpc_command(name="unregisterParticipant")
    async def unregister_participant(self, request: Request, name: Any) -> None:
        """Release a name of this connection."""
        if await self.names.release(request.connection, name):
            return
        if await self.names.find(name) is None:
            raise RPCError("Unknown participant", "unknown_participant")
        raise RPCError("Invalid participant", "invalid_participant")

    @rpc_command(name="listParticipants")
    async def list_participants(self, request: Request) -> Compound:
        """List all names, in the order of their canonical forms."""
        reply = Compound()
        reply.value = reply.share(await self.names.listed())
        return reply

    @rpc_command(name="send")
    async def send_message(self, request: Request, sender: Any, dest: Any, body: Any) -> None:
        """Send a message from one of this connection's names to any name."""
        self._demand_held(request, sender)
        message = {"type": "message", "sender": sender, "dest": dest, "body": body}
        gone = None
        for _ in range(_ATTEMPTS):
            owner = await self.names.find(dest)
            if owner is None or owner == gone:
                break
            self._demand_held(request, sender)  # it may have been lost while Redis was asked
            if await self.direct.send(owner, message):
                return
            gone = owner
        raise RPCError("Unknown destination", "unknown_destination")

    def _permits(self, request: Request, name: Any) -> bool:
        if self.permits(request, "register", name):
            return True
        try:  # without rules: the client's identity, whatever characters it has
            return self._is_default and identity_text(name) == request.identity
        except ValueError:
            return False

    def _demand_held(self, request: Request, sender: Any) -> None:
        if not self.names.is_held(request.connection, sender):
            raise RPCError("Invalid sender", "invalid_sender")


def _access(
    service: str, names: str | Iterable[NameRule | dict[str, Any]] | None, unmatched: Unmatched | None
) -> Access[NameRule]:
    written = [{"match": names}] if isinstance(names, str) else names
    return Access(service, Rules.read(written or (), NameRule("*"), "names"), unmatched)
