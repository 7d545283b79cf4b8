"""A real-time gateway: WebSocket clients on many nodes, services between them, Redis behind.

The names below are the public ones; services import nothing else of this package. `run` runs a whole gateway;
`WebSocketHandler`, `BackendHandler` and `running` put one into an aiohttp application of one's own.
"""

from gateway._version import __version__
from gateway.codec import PAYLOAD
from gateway.connection import Connection
from gateway.errors import (
    AlreadySubscribed,
    BrokerUnavailable,
    CloseCode,
    ConfigurationError,
    ConnectionClosed,
    InvalidChannel,
    InvalidInput,
    InvalidMessage,
    LimitExceeded,
    NotSubscribed,
    Refused,
    SnorkyError,
    UnknownService,
)
from gateway.http.backend import BackendHandler
from gateway.http.handler import WebSocketHandler
from gateway.info import InfoService
from gateway.metrics import Metrics
from gateway.node import Node
from gateway.process import run
from gateway.registry import ServiceRegistry, error_message, is_cancelling, send_error
from gateway.running import running
from gateway.server import Gateway
from gateway.service import Cluster, Service, Topics
from gateway.settings import ApiKey, Limits, Private, Public, Settings, load

__all__ = [
    "PAYLOAD",
    "AlreadySubscribed",
    "ApiKey",
    "BackendHandler",
    "BrokerUnavailable",
    "CloseCode",
    "Cluster",
    "ConfigurationError",
    "Connection",
    "ConnectionClosed",
    "Gateway",
    "InfoService",
    "InvalidChannel",
    "InvalidInput",
    "InvalidMessage",
    "LimitExceeded",
    "Limits",
    "Metrics",
    "Node",
    "NotSubscribed",
    "Private",
    "Public",
    "Refused",
    "Service",
    "ServiceRegistry",
    "Settings",
    "SnorkyError",
    "Topics",
    "UnknownService",
    "WebSocketHandler",
    "__version__",
    "error_message",
    "is_cancelling",
    "load",
    "run",
    "running",
    "send_error",
]
