"""RedisSubscriptionStore: the server-side subscriptions of identities, in one Redis or several independent ones.

In Redis, each key in a slot of its own:
- the hash `PREFIX:{subscriptions IDENTITY}`: SERVICE:CHANNEL -> EXPIRES_MS GENERATION OPTIONS; 0 = it does not expire;
- the string `PREFIX:{subscribed SERVICE:CHANNEL}`: the channel's generation, a random text.
A subscription is valid while it has the present generation of its channel. So `end` deletes one key for all identities.
`find` removes those that are not valid any more, and so does `add` if there are too many.
Both keys expire after UNUSED_S. Each `find` prolongs the keys of its identity and of its channels.
"""

import secrets
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from snorky.gateway.contracts.subscriptions import STORED_MAX, UNUSED_S, StoredSubscription, too_many
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.keys import subscribed_key, subscriptions_key
from snorky.gateway.redis.multi.hashing import Spread

__all__ = ["RedisSubscriptionStore"]

_UNUSED_MS: Final = b"%d" % round(UNUSED_S * 1000)


class _Options(msgspec.Struct, frozen=True, rename="camel"):
    """The options of a stored subscription, as JSON. Nodes of later versions may add some."""

    has_positions: bool = True


class RedisSubscriptionStore:
    """Implements `contracts.subscriptions.SubscriptionStore`. commands: to each Redis; not started."""

    def __init__(self, commands: Spread[Commands], *, prefix: str) -> None:
        self._commands = commands
        self._scripts = commands.map(lambda _, each: Scripts(each))
        self._prefix = prefix
        self._has_started = False  # it connects when it is first used

    async def stop(self) -> None:
        """See SubscriptionStore."""
        self._has_started = True  # a later call fails instead of connecting
        for commands in self._commands:
            await commands.stop()

    async def add(self, identity: str, subscription: StoredSubscription) -> None:
        """See SubscriptionStore."""
        field = f"{subscription.service}:{subscription.channel}"
        fresh = secrets.token_hex(8).encode()
        call = Call("generation", [subscribed_key(self._prefix, field)], [fresh, _UNUSED_MS])
        generation = await self._run(_of_channel(field), call)
        within_s = subscription.expires_in_s
        options = msgspec.json.encode(_Options(subscription.has_positions))
        arguments = [
            field.encode(),
            generation + b" " + options,
            b"%d" % (0 if within_s is None else max(1, round(within_s * 1000))),
            b"%d" % STORED_MAX,
            _UNUSED_MS,
        ]
        call = Call("subscribe", [self._key(identity)], arguments)
        if await self._run(_of_identity(identity), call):
            return
        await self.find(identity)  # it removes those whose channels have ended
        if not await self._run(_of_identity(identity), call):
            raise too_many()

    async def remove(self, identity: str, service: str, channel: str | None) -> None:
        """See SubscriptionStore."""
        whole, prefix = (f"{service}:{channel}", "") if channel is not None else ("", f"{service}:")
        arguments = [whole.encode(), prefix.encode()]
        await self._run(_of_identity(identity), Call("unsubscribe", [self._key(identity)], arguments))

    async def end(self, service: str, channel: str) -> None:
        """See SubscriptionStore."""
        field = f"{service}:{channel}"
        await self._run(_of_channel(field), command(b"DEL", subscribed_key(self._prefix, field)))

    async def find(self, identity: str) -> list[StoredSubscription]:
        """See SubscriptionStore."""
        call = Call("subscriptions", [self._key(identity)], [_UNUSED_MS])
        words = await self._run(_of_identity(identity), call)
        fields = [field.decode(errors="replace") for field in words[::3]]
        generations = await self._generations(fields)
        found: list[StoredSubscription] = []
        ended: list[bytes] = []
        for field, value, rest_ms in zip(fields, words[1::3], words[2::3], strict=True):
            generation, _, options = value.partition(b" ")
            if generation == generations[field]:
                service, _, channel = field.partition(":")
                has_positions = msgspec.json.decode(options, type=_Options).has_positions
                expires_in_s = None if rest_ms == 0 else rest_ms / 1000
                found.append(StoredSubscription(service, channel, has_positions, expires_in_s))
            else:
                ended += [field.encode(), value]
        if ended:
            await self._run(_of_identity(identity), Call("forget", [self._key(identity)], ended))
        return found

    async def _generations(self, fields: Sequence[str]) -> dict[str, bytes | None]:
        """Read the generations of channels, and keep them."""
        found: dict[str, bytes | None] = {}
        by_redis: dict[Scripts, list[str]] = {}
        for field in fields:
            by_redis.setdefault(self._scripts.of(_of_channel(field)), []).append(field)
        for scripts, those in by_redis.items():
            keys = [subscribed_key(self._prefix, field) for field in those]
            steps = [step for key in keys for step in (command(b"GET", key), command(b"PEXPIRE", key, _UNUSED_MS))]
            answers = await scripts.run(*steps, in_order=False)
            found.update(zip(those, answers[::2], strict=True))
        return found

    async def _run(self, place: str, step: Call | bytes) -> Any:
        if not self._has_started:
            self._has_started = True
            for commands in self._commands:
                commands.start()
        return (await self._scripts.of(place).run(step))[0]

    def _key(self, identity: str) -> bytes:
        return subscriptions_key(self._prefix, identity)


def _of_identity(identity: str) -> str:
    return f"subscriptions {identity}"


def _of_channel(field: str) -> str:
    return f"subscribed {field}"
