"""A real-time gateway: WebSocket clients on many nodes, services that answer them, and Redis between the nodes.

The names below are the public API; services import nothing else from this package. `run` runs a complete gateway;
`WebSocketHandler`, `BackendHandler` and `running` add one to your own aiohttp application.
"""

from gateway._version import __version__
from gateway.auth import Identity
from gateway.authenticator import AlreadyAuthenticated, Authenticator
from gateway.codec import PAYLOAD, channel_name, json_size
from gateway.compound import Compound
from gateway.connection import Connection
from gateway.directory import Census, Entered, Member, Owner
from gateway.errors import (
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
from gateway.history import History, Keeper, Recovery, history_of
from gateway.http.backend import BackendHandler
from gateway.http.handler import WebSocketHandler
from gateway.identity import identity_name, identity_text, stated_identity
from gateway.info import InfoService
from gateway.metrics import Metrics
from gateway.node import Node
from gateway.primitives import Cluster, Direct, Names, Rosters, Tokens
from gateway.process import run
from gateway.publication import Position, Publication, Selector
from gateway.registry import ServiceRegistry, error_message, is_cancelling, send_error
from gateway.rules import ChannelRule, Rules
from gateway.running import running
from gateway.server import Gateway
from gateway.service import Service
from gateway.settings import ApiKey, Auth, Limits, Private, Public, Settings, load
from gateway.topics import Topics

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
