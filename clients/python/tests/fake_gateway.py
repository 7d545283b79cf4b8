"""A gateway without sockets, and a clock that tests advance: for the session's tests.

    stage = Stage(seed); client = stage.session(...); stage.publish("news", 1); stage.run(until_s)

The gateway keeps a history for every channel, and simulates a bad network and a correct node: connections are cut after
any message, connecting fails, live messages arrive before the reply to `subscribe`. Messages wait in queues until the
stage delivers them.
"""

import heapq
import itertools
import json
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from snorky.client.realtime.line import Line

__all__ = ["FakeClock", "FakeGateway"]


class FakeClock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._cancelled: set[int] = set()
        self._numbers = itertools.count()

    def now_s(self) -> float:
        return self._now_s

    def after(self, delay_s: float, run: Callable[[], None]) -> Callable[[], None]:
        number = next(self._numbers)
        heapq.heappush(self._timers, (self._now_s + delay_s, number, run))
        return lambda: self._cancelled.add(number)

    def advance(self, seconds: float) -> None:
        """Advance the time and run the timers that are due."""
        until_s = self._now_s + seconds
        while self._timers and self._timers[0][0] <= until_s:
            self._now_s, number, run = heapq.heappop(self._timers)
            if number not in self._cancelled:
                run()
        self._now_s = until_s


class _Peer:
    """The gateway's end of one connection."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.is_open = False
        self.to_client: deque[str | tuple[int, str]] = deque()  # a tuple is the end
        self.channels: dict[str, bool] = {}  # name -> with positions


class FakeGateway:
    """The Io of a session: receives its messages, and delivers the replies when `pump` is called."""

    def __init__(self) -> None:
        self.session: Any = None
        self.peers: dict[Line, _Peer] = {}
        self.dialled: deque[Line] = deque()
        self.dials: list[bool] = []  # is_token_new of each
        self.epochs: dict[str, str] = defaultdict(lambda: "e1")
        self.histories: dict[str, list[tuple[Any, str]]] = defaultdict(list)  # (message, tag), offset = index + 1
        self.kept_from: dict[str, int] = defaultdict(lambda: 1)
        self.keys: set[str] = set()
        self.requests: list[dict[str, Any]] = []
        self.refusals: deque[dict[str, Any]] = deque()  # replies to the next `subscribe` requests
        self.is_silent = False  # requests are executed but get no reply
        self.last_answer: object = None
        self.has_history = True
        self.lifetime_s: float | None = None  # of subscription tokens; None = channels need none
        self.refused_tokens: dict[str, dict[str, Any]] = {}  # errors
        self.server_side: set[str] = set()  # channels that the backend has subscribed this client to
        self.replay_max = 300
        self.page_max = 300

    # -- Io ------------------------------------------------------------------------------------------------------

    def dial(self, line: Line, *, is_token_new: bool) -> None:
        self.dials.append(is_token_new)
        self.peers[line] = _Peer(line)
        self.dialled.append(line)

    def send(self, line: Line, text: str) -> None:
        peer = self.peers.get(line)
        assert peer is not None and peer.is_open, "sent on what is not open"
        envelope = json.loads(text)
        self._act(peer, envelope["service"], envelope["message"])

    def close(self, line: Line, code: int, reason: str) -> None:
        peer = self.peers.get(line)
        if peer is not None:
            peer.channels.clear()
            peer.to_client.append((code, reason))

    # -- events --------------------------------------------------------------------------------------------------

    def open_one(self) -> None:
        """Let the first connecting line open."""
        line = self.dialled.popleft()
        self.peers[line].is_open = True
        self.session.on_open(line)

    def fail_one(self) -> None:
        """Let the first connecting line fail."""
        line = self.dialled.popleft()
        del self.peers[line]
        self.session.on_end(line, 1006, "")

    def open_lines(self) -> list[Line]:
        return [line for line, peer in self.peers.items() if peer.is_open]

    def cut(self, line: Line, code: int = 1006, *, kept: int = 0) -> None:
        """End a connection; only `kept` of the messages in flight still arrive."""
        peer = self.peers[line]
        arriving = list(itertools.islice(peer.to_client, kept))
        peer.to_client = deque([*arriving, (code, "")])
        peer.channels.clear()

    def deliver(self, line: Line) -> bool:
        """Deliver the next message or the end of a line."""
        peer = self.peers.get(line)
        if peer is None or not peer.to_client:
            return False
        item = peer.to_client.popleft()
        if isinstance(item, tuple):
            del self.peers[line]
            self.session.on_end(line, *item)
        else:
            self.session.on_text(line, item)
        return True

    def pump(self) -> None:
        """Deliver all messages, and open all connecting lines."""
        while True:
            while self.dialled:
                self.open_one()
            if not any([self.deliver(line) for line in list(self.peers)]):
                return

    def settle(self, clock: FakeClock, seconds: float = 60.0) -> None:
        """Advance the time without faults."""
        for _ in range(int(seconds / 0.25)):
            self.pump()
            clock.advance(0.25)
        self.pump()

    def publish(self, channel: str, message: Any) -> None:
        """Publish as a backend does."""
        tag = f"t{len(self.histories[channel])}"
        self.histories[channel].append((message, tag))
        offset = len(self.histories[channel])
        for peer in self.peers.values():
            if channel in peer.channels:
                self._notify(peer, channel, offset)

    def move(self, line: Line, grace_ms: int = 1000) -> None:
        """Announce that the node leaves."""
        self._say(self.peers[line], "gateway", {"type": "moving", "graceMs": grace_ms})

    def gap(self, channel: str) -> None:
        """Start a new history: earlier messages are no longer available."""
        self.epochs[channel] += "+"
        self.histories[channel].clear()
        self.kept_from[channel] = 1
        for peer in self.peers.values():
            if peer.channels.get(channel):
                self._say(peer, "pubsub", {"type": "gap", "channel": channel, "position": self._position(channel)})

    def end(self, channel: str, code: str = "expired", *, line: Line | None = None) -> None:
        """End the subscriptions to a channel, or that of one line."""
        for each, peer in self.peers.items():
            if line in (None, each) and peer.channels.pop(channel, None) is not None:
                end = {"type": "unsubscribed", "channel": channel, "code": code, "reason": f"It is {code}"}
                self._say(peer, "pubsub", end)

    def order(self, channel: str, *, recover: Any = True) -> None:
        """Subscribe the client as the backend does."""
        self.server_side.add(channel)
        for peer in self.peers.values():
            if peer.is_open and channel not in peer.channels:
                self._restore(peer, channel, recover)

    def restore(self, line: Line) -> None:
        """Subscribe a new connection as its node does."""
        for channel in sorted(self.server_side - self.peers[line].channels.keys()):
            self._restore(self.peers[line], channel, True)

    def _restore(self, peer: _Peer, channel: str, recover: Any) -> None:
        fields = self._subscribe(peer, channel, recover) or {}
        self._say(peer, "pubsub", {"type": "subscribed", "channel": channel, **fields})

    # -- the service ---------------------------------------------------------------------------------------------

    def _position(self, channel: str, offset: int | None = None) -> str:
        history = self.histories[channel]
        offset = len(history) if offset is None else offset
        tag = history[offset - 1][1] if offset else "t"
        return f"{self.epochs[channel]}:{offset}:{tag}"

    def _notify(self, peer: _Peer, channel: str, offset: int) -> None:
        message: dict[str, Any] = {"type": "message", "channel": channel}
        message["message"] = self.histories[channel][offset - 1][0]
        if peer.channels[channel] and self.has_history:
            message |= {"offset": offset, "position": self._position(channel, offset)}
        self._say(peer, "pubsub", message)

    def _say(self, peer: _Peer, service: str, message: dict[str, Any]) -> None:
        peer.to_client.append(json.dumps({"service": service, "message": message}))

    def _act(self, peer: _Peer, service: str, message: dict[str, Any]) -> None:
        self.requests.append(message)
        answer: dict[str, Any] = {"type": "response", "callId": message["callId"], "data": None}
        params = message["params"]
        match message["command"]:
            case "subscribe" if self.refusals:
                answer = {**self.refusals.popleft(), "type": "error", "callId": message["callId"]}
            case "subscribe" | "refreshSubscription" if (error := self._judge(params.get("token"))) is not None:
                answer = {**error, "type": "error", "callId": message["callId"]}
            case "refreshSubscription" if params["channel"] not in peer.channels:
                answer |= {"type": "error", "message": "Not subscribed", "code": "not_subscribed"}
            case "refreshSubscription":
                answer["data"] = {"expiresInS": self.lifetime_s}
            case "history" if self.lifetime_s is not None and params["channel"] not in peer.channels:
                answer |= {"type": "error", "message": "Not authorized", "code": "not_authorized"}
            case "subscribe" if params.get("serverSide") and params["channel"] not in self.server_side:
                answer |= {"type": "error", "message": "Not subscribed", "code": "not_subscribed"}
            case "history" if params["channel"] in self.server_side and params["channel"] not in peer.channels:
                answer |= {"type": "error", "message": "Not authorized", "code": "not_authorized"}
            case "subscribe" if params["channel"] in peer.channels and params["channel"] not in self.server_side:
                answer |= {"type": "error", "message": "Already subscribed", "code": "already_subscribed"}
            case "subscribe":
                answer["data"] = self._subscribe(peer, params["channel"], params.get("recover"))
                if self.lifetime_s is not None:
                    answer["data"] = {**(answer["data"] or {}), "expiresInS": self.lifetime_s}
            case "history":
                count = min(self.page_max, params["limit"])
                answer["data"] = self._behind(params["channel"], params["since"], count, is_all=False)
            case "unsubscribe":
                peer.channels.pop(params["channel"], None)
            case "publish" if params["key"] not in self.keys:
                self.keys.add(params["key"])
                self.publish(params["channel"], params["message"])
        if not self.is_silent:
            self._say(peer, service, answer)
            self.last_answer = peer.to_client[-1]

    def _judge(self, token: str | None) -> dict[str, Any] | None:
        if self.lifetime_s is None:
            return None
        if token is None:
            return {"message": "Not authorized", "code": "not_authorized"}
        return self.refused_tokens.get(token)

    def _subscribe(self, peer: _Peer, channel: str, recover: Any) -> Any:
        peer.channels[channel] = recover is not None
        if recover is None:
            return None
        if not self.has_history:
            return {"position": None, "recovered": False, "messages": []}
        reply: dict[str, Any] = {"position": self._position(channel), "recovered": True, "messages": []}
        if recover is True:
            return reply
        return self._behind(channel, recover, self.replay_max, is_all=True)

    def _behind(self, channel: str, recover: str, maximum: int, *, is_all: bool) -> Any:
        reply: dict[str, Any] = {"position": self._position(channel), "recovered": True, "messages": []}
        epoch, offset, tag = recover.split(":")
        since = int(offset)
        is_there = epoch == self.epochs[channel] and self.kept_from[channel] - 1 <= since <= len(
            self.histories[channel]
        )
        if not is_there or self._position(channel, since) != f"{epoch}:{offset}:{tag}":
            return {**reply, "recovered": False}
        if len(self.histories[channel]) - since > maximum:
            return {**reply, "recovered": False} if is_all else self._page(channel, since, since + maximum)
        return self._page(channel, since, len(self.histories[channel]))

    def _page(self, channel: str, since: int, until: int) -> Any:
        messages = []
        for number in range(since + 1, until + 1):
            message = self.histories[channel][number - 1][0]
            messages.append({"message": message, "offset": number, "position": self._position(channel, number)})
        return {"position": self._position(channel), "recovered": True, "messages": messages}
