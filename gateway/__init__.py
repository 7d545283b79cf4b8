"""A real-time gateway: WebSocket clients on many nodes, services that answer them, and Redis between the nodes.

The names below are the public API; services import nothing else from this package. `run` runs a complete gateway;
`WebSocketHandler`, `BackendHandler` and `running` add one to your own aiohttp application.
"""

from snorky.gateway._version import __version__
from snorky.gateway.auth.authenticator import AlreadyAuthenticated, Authenticator
from snorky.gateway.auth.grants import Grant
from snorky.gateway.auth.tokens import Identity
from snorky.gateway.config.rules.access_words import Words
from snorky.gateway.config.rules.channel_rules import ChannelRule, Rule, Rules
from snorky.gateway.config.settings import ApiKey, Auth, ClusterLimits, Limits, Private, Public, Settings, load
from snorky.gateway.connection.connection import Connection
from snorky.gateway.contracts.directory import Entered, Member, Owner, RosterSize, RosterSnapshot
from snorky.gateway.contracts.history import History, HistoryStore, Order, Recovery, history_of
from snorky.gateway.errors import (
    AlreadySubscribed,
    BrokerUnavailable,
    CloseCode,
    ConfigurationError,
    ConnectionClosed,
    HookRefused,
    HookUnavailable,
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
from snorky.gateway.http.backend.routes import BackendHandler
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.metrics import Metrics
from snorky.gateway.node import Node
from snorky.gateway.permissions.access import Access, Unmatched
from snorky.gateway.protocol.attributes import read_attributes, write_attributes
from snorky.gateway.protocol.codec import Verbatim, channel_name, json_size
from snorky.gateway.protocol.foreign import SubscribeTerms, attributes_by
from snorky.gateway.protocol.identities import identity_name, identity_text, stated_identity
from snorky.gateway.protocol.publication import Position, Publication, Selector
from snorky.gateway.protocol.splicing import PAYLOAD, Compound
from snorky.gateway.runtime.gateway import Gateway
from snorky.gateway.runtime.node import running
from snorky.gateway.runtime.process import run
from snorky.gateway.sdk.control import Control, Reached
from snorky.gateway.sdk.handles import Direct, Names, NodeServices, Rosters, Tokens
from snorky.gateway.sdk.info import InfoService
from snorky.gateway.sdk.registry import ServiceRegistry, error_message, is_cancelling, send_error
from snorky.gateway.sdk.service import Service
from snorky.gateway.sdk.topics import Topics

__all__ = [
    "PAYLOAD",
    "Access",
    "AlreadyAuthenticated",
    "AlreadySubscribed",
    "ApiKey",
    "Auth",
    "Authenticator",
    "BackendHandler",
    "BrokerUnavailable",
    "ChannelRule",
    "CloseCode",
    "ClusterLimits",
    "Compound",
    "ConfigurationError",
    "Connection",
    "ConnectionClosed",
    "Control",
    "Direct",
    "Entered",
    "Gateway",
    "Grant",
    "History",
    "HistoryStore",
    "HookRefused",
    "HookUnavailable",
    "Identity",
    "InfoService",
    "InvalidChannel",
    "InvalidInput",
    "InvalidMessage",
    "InvalidToken",
    "LimitExceeded",
    "Limits",
    "Member",
    "Metrics",
    "Names",
    "Node",
    "NodeServices",
    "NotAuthenticated",
    "NotSubscribed",
    "Order",
    "Owner",
    "Position",
    "Private",
    "Public",
    "Publication",
    "Reached",
    "Recovery",
    "Refused",
    "ReplyTooLarge",
    "Revoked",
    "RosterSize",
    "RosterSnapshot",
    "Rosters",
    "Rule",
    "Rules",
    "Selector",
    "Service",
    "ServiceRegistry",
    "Settings",
    "SnorkyError",
    "SubscribeTerms",
    "Tokens",
    "Topics",
    "UnknownService",
    "Unmatched",
    "Verbatim",
    "WebSocketHandler",
    "Words",
    "__version__",
    "attributes_by",
    "channel_name",
    "error_message",
    "history_of",
    "identity_name",
    "identity_text",
    "is_cancelling",
    "json_size",
    "load",
    "read_attributes",
    "run",
    "running",
    "send_error",
    "stated_identity",
    "write_attributes",
]
