"""Client: subscribes to channels in real time, calls services and publishes, across reconnects and moves.

    async with Client("wss://gateway.example.org/ws") as client:
        async with client.subscribe("news", recover=True) as news:
            async for event in news: ...

The logic is in `session`; this module adds sockets, time and futures.
"""

import asyncio
import inspect
import logging
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal
from urllib.parse import urlsplit

from snorky.client.canonical import channel_name
from snorky.client.clock import Backoff
from snorky.client.errors import ConnectionEnded, SnorkyError, TransportError
from snorky.client.publication import KEY_MAX_BYTES
from snorky.client.realtime.channel_token import ChannelToken, check_channel_token
from snorky.client.realtime.events import Event
from snorky.client.realtime.request import MESSAGE_MAX_BYTES
from snorky.client.realtime.session import Session, SessionOptions
from snorky.client.realtime.socket import Sockets
from snorky.client.realtime.token import Token, TokenSource
from snorky.client.realtime.token_calls import SubscriptionToken, TokenCalls
from snorky.client.realtime.topic import Topic

__all__ = ["Client", "Subscription"]

REFRESH_RETRY_S = 5.0  # after a failed refresh

_log = logging.getLogger("snorky.realtime")


class _LoopClock:
    """The event loop's time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now_s(self) -> float:
        return self._loop.time()

    def after(self, delay_s: float, run: Callable[[], None]) -> Callable[[], None]:
        return self._loop.call_later(delay_s, run).cancel


class _Process:
    """The process that a client belongs to. After a fork, two processes would use the same connection."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_ours(self) -> bool:
        return self._pid == os.getpid()

    def check(self) -> None:
        """Raises RuntimeError: this is another process, where the client does not run."""
        if not self.is_ours:
            raise RuntimeError("this client belongs to another process: create and enter a new one after the fork")


class Subscription:
    """A subscription to one channel: an async iterator of Message, Gap and Recovered that ends when it is closed.

    It is the result of `subscribe`, or a server-side subscription, which the backend has begun.
    Iterating raises SnorkyError: the gateway refused; ConnectionEnded: the client has ended. One reader at a time.
    """

    def __init__(self, session: Session, topic: Topic, changed: asyncio.Event, process: _Process) -> None:
        self._session = session
        self._process = process
        self._topic = topic
        self._changed = changed
        self._position: str | None = None

    @property
    def channel(self) -> Any:
        """The channel that was passed to `subscribe`, or by the backend."""
        return self._topic.channel

    @property
    def service(self) -> str:
        """The name of the channel's service."""
        return self._topic.service

    @property
    def position(self) -> str | None:
        """The position of the last event that was read, to recover from. None = not known yet, or no history."""
        if self._position is None and not self._topic.events and self._topic.position is not None:
            return str(self._topic.position)
        return self._position

    async def ready(self) -> "Subscription":
        """Wait until the gateway confirms the subscription, over as many attempts to connect as needed.

        Raises SnorkyError: it refused; ConnectionEnded: the client does not reconnect (`reason`, `status`).
        """
        self._process.check()
        while self._topic.state == "wished":
            self._changed.clear()
            await self._changed.wait()
        if self._topic.error is not None:
            raise self._topic.error
        return self

    async def close(self) -> None:
        """Unsubscribe. Idempotent."""
        if self._process.is_ours:
            self._session.unsubscribe(self._topic)

    async def __aenter__(self) -> "Subscription":
        return await self.ready()

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        self._process.check()
        topic = self._topic
        while not topic.events:
            if topic.error is not None:
                raise topic.error
            if topic.state == "closed":
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        event = topic.events.popleft()
        self._position = event.position
        self._session.drained(topic)
        return event


class Client:
    """A client of a gateway's public port. Enter it in the event loop where it is used; after a fork, in the child.

    url: ws:// or wss://, the gateway's /ws. token: authenticates the client: a text, or a (coroutine) function that
    returns a new one; it is called before the token expires, and once when the gateway refuses it. bearer: where the
    handshake carries the token: "header" (Authorization) or "subprotocol". call_timeout_s: until the reply, including
    the wait for a connection. publish_timeout_s, publishes_max: maximum time and number of waiting publishes.
    max_message_bytes: the gateway's `message_max_bytes`; larger messages are rejected at the call. events_max:
    maximum of unread events per subscription. connect_timeout_s: for a handshake, and for a function that returns a
    token. ping_interval_s: between pings; a connection on which nothing arrives for two intervals is closed.
    backoff_base_s, backoff_max_s: initial and maximum bound of the random delay between attempts to connect.
    on_notification(service, message): called with notifications that do not belong to a subscribed channel; its
    exceptions are logged (`snorky.realtime`). on_subscribed(subscription): called when the backend has subscribed this
    client to a channel; without it, such messages go to on_notification. The subscription is restored after a reconnect
    as those of `subscribe` are, and ends when the backend ends it. on_reconnecting(error, delay_s): called with the
    reason for the lost connection (text, HTTP `status`) and the delay until the next attempt. connect_options: further
    arguments of `websockets.connect`: `ssl`, `proxy`.
    Raises ValueError, TypeError: an argument is not valid; ImportError: websockets is missing.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token | None = None,
        bearer: Literal["header", "subprotocol"] = "header",
        call_timeout_s: float = 10.0,
        publish_timeout_s: float = 30.0,
        publishes_max: int = 1_000,
        max_message_bytes: int = MESSAGE_MAX_BYTES,
        events_max: int = 1_000,
        connect_timeout_s: float = 10.0,
        ping_interval_s: float = 10.0,
        backoff_base_s: float = 0.5,
        backoff_max_s: float = 30.0,
        on_notification: Callable[[str, dict[str, Any]], None] = lambda _service, _message: None,
        on_reconnecting: Callable[[TransportError, float], None] = lambda _error, _delay_s: None,
        on_subscribed: Callable[[Subscription], None] | None = None,
        connect_options: dict[str, Any] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.username is not None:
            raise ValueError("url: write ws://HOST:PORT/ws or wss://..., without a user")
        if bearer not in ("header", "subprotocol"):
            raise ValueError('bearer: "header" or "subprotocol"')
        callbacks = {
            "on_notification": on_notification,
            "on_reconnecting": on_reconnecting,
            "on_subscribed": on_subscribed,
        }
        for name, function in callbacks.items():
            if inspect.iscoroutinefunction(function):
                raise TypeError(f"{name}: a plain function is expected; it may put items into an asyncio.Queue")
        self._tokens = TokenSource(token, is_subprotocol=bearer == "subprotocol")
        self._sockets = Sockets(
            url,
            self._tokens,
            connect_timeout_s=connect_timeout_s,
            ping_interval_s=ping_interval_s,
            is_bearer_subprotocol=bearer == "subprotocol",
            options=dict(connect_options or {}),
        )
        self._options = SessionOptions(
            call_timeout_s=call_timeout_s,
            publish_timeout_s=publish_timeout_s,
            publishes_max=publishes_max,
            max_message_bytes=max_message_bytes,
            backoff_base_s=backoff_base_s,
            backoff_max_s=backoff_max_s,
            has_token=token is not None,
            is_token_renewable=self._tokens.is_renewable,
        )
        self._token_calls = TokenCalls(connect_timeout_s)
        self._events_max = events_max
        self._on_notification = on_notification
        self._on_reconnecting = on_reconnecting
        self._on_subscribed = on_subscribed
        self._session: Session | None = None
        self._process = _Process()
        self._ended = asyncio.Event()
        self._refresher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Client":
        if self._session is not None:
            raise RuntimeError("a client is entered once")
        self._process = _Process()
        self._session = Session(
            self._sockets,
            _LoopClock(),
            self._options,
            on_notification=self._on_notification,
            on_reconnecting=self._on_reconnecting,
            on_subscribed=self._subscribed,
            on_end=lambda _error: self._ended.set(),
        )
        self._sockets.session = self._session
        self._session.start()
        if self._tokens.is_renewable:
            self._refresher = asyncio.get_running_loop().create_task(self._refresh(), name="snorky-refresh")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    @property
    def is_connected(self) -> bool:
        """True while the client is connected."""
        return self._session is not None and self._process.is_ours and self._session.is_open

    def subscribe(
        self,
        channel: Any,
        *,
        recover: bool | str = False,
        service: str = "pubsub",
        token: SubscriptionToken | None = None,
    ) -> Subscription:
        """Subscribe on this and all later connections; returns at once. `async with` waits for the confirmation.

        recover: on a channel that keeps a history, missed messages are delivered after each reconnect, in order and
        once, or reported as lost. True = from now on; a position = from there on. token: a subscription token, which
        permits the channel: a text, or a (coroutine) function that gets the channel and returns a new one, or None if
        the client may not have it. It is called for each `subscribe` that is sent, and before the token expires; if it
        raises, or takes more than `connect_timeout_s`, again after a delay. Raises SnorkyError: `already_subscribed`;
        ValueError: the channel, the position or the token is not valid.
        """
        changed = asyncio.Event()
        session = self._running()
        topic = Topic(
            service,
            channel,
            recover=recover,
            token=None if token is None else self._channel_token(token, channel),
            events_max=self._events_max,
            on_change=changed.set,
        )
        session.subscribe(topic)
        return Subscription(session, topic, changed, self._process)

    async def call(self, service: str, command: str, /, **params: Any) -> Any:
        """Call a service's command and return the reply's data. The call is never sent twice.

        Raises SnorkyError: it refused; TransportError: no reply, `may_have_happened` says whether it was sent;
        ConnectionEnded; ValueError, TypeError: the gateway would not accept the parameters, nothing was sent.
        """
        future, done = _future()
        self._running().call(service, command, params, done)
        return await future

    async def publish(self, channel: Any, message: Any, *, key: str | None = None, service: str = "pubsub") -> None:
        """Publish a message; wait for the gateway's reply, also across reconnects.

        key: idempotency key, None = a random one. Without a connection the publish waits, in order, as one of
        `publishes_max`. If the connection ends before the reply, a client with a token sends the message again under
        its key; without a token the gateway would not recognize the key. Raises as `call`; TransportError `queue_full`:
        too many wait; `too_large`: the gateway's limit is below `max_message_bytes`, and it accepted nothing.
        """
        channel_name(channel)
        if key is not None and not isinstance(key, str):
            raise TypeError("key: a string is expected")
        if key is not None and not 0 < len(key.encode()) <= KEY_MAX_BYTES:
            raise ValueError(f"key: 1 to {KEY_MAX_BYTES} bytes")
        future, done = _future()
        params = {"channel": channel, "message": message, "key": key or secrets.token_hex(16)}
        self._running().publish(service, params, done)
        await future

    async def wait_ended(self) -> ConnectionEnded:
        """Wait until the client has ended permanently; return the reason."""
        session = self._running()
        await self._ended.wait()
        return session.error or ConnectionEnded(1000)

    async def aclose(self) -> None:
        """Close the connection, end subscriptions and fail pending calls. Idempotent; no effect in a forked process."""
        if not self._process.is_ours:
            return
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.wait([self._refresher])
        if self._session is not None:
            self._session.close()
        await self._token_calls.aclose()
        await self._sockets.aclose()

    def _subscribed(self, service: str, channel: Any, has_positions: bool) -> Topic | None:
        """Make the topic of a server-side subscription, and give its Subscription to the program."""
        if self._on_subscribed is None:
            return None
        changed, session = asyncio.Event(), self._running()
        try:
            topic = Topic(
                service,
                channel,
                recover=has_positions,
                is_server_side=True,
                events_max=self._events_max,
                on_change=changed.set,
            )
        except (ValueError, TypeError):
            return None  # not a valid channel
        # later: the program may close it, and it is not in the session yet
        subscription = Subscription(session, topic, changed, self._process)
        asyncio.get_running_loop().call_soon(self._hand_over, subscription)
        return topic

    def _hand_over(self, subscription: Subscription) -> None:
        try:
            if self._on_subscribed is not None:
                self._on_subscribed(subscription)
        except Exception:
            _log.exception("on_subscribed failed for %r", subscription.channel)

    def _running(self) -> Session:
        if self._session is None:
            raise RuntimeError("write: async with Client(...) as client")
        self._process.check()
        return self._session

    def _channel_token(self, token: SubscriptionToken, channel: Any) -> ChannelToken:
        options = self._options
        backoff = Backoff(base_s=options.backoff_base_s, max_s=options.backoff_max_s, uniform=random.uniform)
        if callable(token):
            return ChannelToken(ask=lambda done: self._token_calls.ask(token, channel, done), backoff=backoff)
        return ChannelToken(check_channel_token(token), backoff=backoff)

    async def _refresh(self) -> None:
        """Replace the token before it expires."""
        while not self._ended.is_set():
            after_s = self._tokens.refresh_after_s()
            if not self.is_connected or after_s is None:
                await asyncio.sleep(1.0)  # no token yet, or its expiry is unknown
                continue
            await asyncio.sleep(after_s)
            try:
                token = await self._tokens.get(is_new=True)
                await self.call("auth", "refresh", token=token)
            except (SnorkyError, OSError, RuntimeError, ValueError, TypeError):
                await asyncio.sleep(REFRESH_RETRY_S)  # if no refresh succeeds, the gateway closes with 4501


def _future() -> tuple[asyncio.Future[Any], Callable[[Any, Exception | None], None]]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(data: Any, error: Exception | None) -> None:
        if future.done():
            return  # the caller was cancelled
        if error is None:
            future.set_result(data)
        else:
            future.set_exception(error)

    return future, done
