"""Plan: the size of a lab and the settings of its nodes."""

from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.scenarios.tokens import SECRET

__all__ = ["API_KEY", "PREFIX", "Plan", "node_config"]

PREFIX = "lab"
API_KEY = "of-the-fault-laboratory"
HISTORY_TTL_S = 600.0
OPEN = 'unmatched = "open"'  # most clients here are anonymous


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The load that the table of promises names. seed: of everything random here."""

    nodes: int = 3
    clients: int = 200
    residents: int = 20  # of the clients
    channels: int = 50
    channels_each: int = 2
    rate_per_s: float = 500.0
    history: int = 2000  # messages of a channel; 0: channels without history, at most once
    has_balancer: bool = True
    drain_grace_s: float = 5.0
    seed: int = 1

    @property
    def channel_names(self) -> list[str]:
        return [f"lab:{number}" for number in range(self.channels)]

    def small(self) -> "Plan":
        """The same, smaller, for a development machine with other users."""
        return replace(self, nodes=2, clients=20, residents=6, channels=10, rate_per_s=100.0, has_balancer=False)


def node_config(directory: Path, plan: Plan) -> Path:
    """Write the settings that all nodes share."""
    lines = [
        f'prefix = "{PREFIX}"',
        "[public]",
        'trusted_proxies = ["127.0.0.1/32"]',
        f"drain_grace_s = {plan.drain_grace_s}",
        "[private]",
        f'api_key = "{API_KEY}"',
        "[auth]",
        f'hmac_secret = "{SECRET}"',
        "[limits]",
        "connections_per_ip = 0",
        "[services.pubsub]",
        'class = "snorky.services.pubsub:PubSubService"',
        OPEN,
    ]
    if plan.history:
        lines += [
            "[[services.pubsub.channels]]",
            'match = "lab:*"',
            'allow_subscribe = "anyone"',
            'allow_publish = "anyone"',
            f"history = {plan.history}",
            f"history_ttl_s = {HISTORY_TTL_S}",
            "[[services.pubsub.channels]]",
            'match = "once:*"',
            'allow_subscribe = "anyone"',
            'allow_publish = "anyone"',
            "history = 1_000_000",
            f"history_ttl_s = {HISTORY_TTL_S}",
        ]
    for name, service in (("chat", "chat:ChatService"), ("messaging", "messaging:MessagingService")):
        lines += [f"[services.{name}]", f'class = "snorky.services.{service}"', OPEN]
    lines += ["[backend.pubsub_backend]", 'class = "snorky.services.pubsub:PubSubBackend"', 'service = "pubsub"']
    lines += ["[backend.control]", 'class = "snorky.services.control:ControlBackend"']
    lines += ["[backend.inside]", 'class = "tests.fault_lab.inside:Inside"']
    path = directory / "node.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
