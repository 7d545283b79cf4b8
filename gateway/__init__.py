"""A real-time gateway: WebSocket clients on many nodes, services that answer them, and Redis between the nodes.

The names below are the public API; services import nothing else from this package. `run` runs a complete gateway;
`WebSocketHandler`, `BackendHandler` and `running` add one to your own aiohttp application.
"""

from snorky.gateway._version import __version__
from snorky.gateway.auth import Identity
from snorky.gateway.authenticator import AlreadyAuthenticated, Authenticator
from snorky.gateway.codec import PAYLOAD, channel_name, json_size
from snorky.gateway.compound import Compound
from snorky.gateway.connection import Connection
from snorky.gateway.directory import Census, Entered, Member, Owner
from snorky.gateway.errors import (
    AlreadySubscribed,
    BrokerUnavailable,
    CloseCode,
    ConfigurationError,
    ConnectionClosed,
    InvalidChannel,
    InvalidInput,
    InvalidMessage,
    InvalidToken,
    LimitExceeded,
    NotAuthenticated,
    NotSubscribed,
    Refused,
    ReplyTooLarge,
    Revoked,
    SnorkyError,
    UnknownService,
)
from snorky.gateway.history import History, Keeper, Recovery, history_of
from snorky.gateway.http.backend import BackendHandler
from snorky.gateway.http.handler import WebSocketHandler
from snorky.gateway.identity import identity_name, identity_text, stated_identity
from snorky.gateway.info import InfoService
from snorky.gateway.metrics import Metrics
from snorky.gateway.node import Node
from snorky.gateway.primitives import Cluster, Direct, Names, Rosters, Tokens
from snorky.gateway.process import run
from snorky.gateway.publication import Position, Publication, Selector
from snorky.gateway.registry import ServiceRegistry, error_message, is_cancelling, send_error
from snorky.gateway.rules import ChannelRule, Rules
from snorky.gateway.running import running
from snorky.gateway.server import Gateway
from snorky.gateway.service import Service
from snorky.gateway.settings import ApiKey, Auth, Limits, Private, Public, Settings, load
from snorky.gateway.topics import Topics

__all__ = [
    "PAYLOAD",
    "AlreadyAuthenticated",
    "AlreadySubscribed",
    "ApiKey",
    "Auth",
    "Authenticator",
    "BackendHandler",
    "BrokerUnavailable",
    "Census",
    "ChannelRule",
    "CloseCode",
    "Cluster",
    "Compound",
    "ConfigurationError",
    "Connection",
    "ConnectionClosed",
    "Direct",
    "Entered",
    "Gateway",
    "History",
    "Identity",
    "InfoService",
    "InvalidChannel",
    "InvalidInput",
    "InvalidMessage",
    "InvalidToken",
    "Keeper",
    "LimitExceeded",
    "Limits",
    "Member",
    "Metrics",
    "Names",
    "Node",
    "NotAuthenticated",
    "NotSubscribed",
    "Owner",
    "Position",
    "Private",
    "Public",
    "Publication",
    "Recovery",
    "Refused",
    "ReplyTooLarge",
    "Revoked",
    "Rosters",
    "Rules",
    "Selector",
    "Service",
    "ServiceRegistry",
    "Settings",
    "SnorkyError",
    "Tokens",
    "Topics",
    "UnknownService",
    "WebSocketHandler",
    "__version__",
    "channel_name",
    "error_message",
    "history_of",
    "identity_name",
    "identity_text",
    "is_cancelling",
    "json_size",
    "load",
    "run",
    "running",
    "send_error",
    "stated_identity",
]
