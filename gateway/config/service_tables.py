"""The tables [services.NAME] and [backend.NAME]; the services that are loaded unless others are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["STANDARD_BACKEND", "STANDARD_SERVICES", "ServiceTable"]


@dataclass(frozen=True, slots=True)
class ServiceTable:
    """One `[services.NAME]` or `[backend.NAME]`."""

    class_name: str  # "snorky.services.pubsub:PubSubService"
    options: Mapping[str, object] = field(default_factory=dict, repr=False)  # keyword arguments of its constructor


STANDARD_SERVICES: Mapping[str, ServiceTable] = MappingProxyType(
    {
        "pubsub": ServiceTable("snorky.services.pubsub:PubSubService"),
        "auth": ServiceTable("snorky.services.auth:AuthService"),
        "chat": ServiceTable("snorky.services.chat:ChatService"),
        "messaging": ServiceTable("snorky.services.messaging:MessagingService"),
        "cursors": ServiceTable("snorky.services.cursors:CursorsService"),
        "datasync": ServiceTable("snorky.services.datasync:DataSyncService"),
    }
)
STANDARD_BACKEND: Mapping[str, ServiceTable] = MappingProxyType(
    {
        "pubsub_backend": ServiceTable("snorky.services.pubsub:PubSubBackend", MappingProxyType({"service": "pubsub"})),
        "auth_backend": ServiceTable("snorky.services.auth:AuthBackend", MappingProxyType({"service": "auth"})),
        "datasync_backend": ServiceTable(
            "snorky.services.datasync:DataSyncBackend", MappingProxyType({"service": "datasync"})
        ),
        "control": ServiceTable("snorky.services.control:ControlBackend"),
    }
)
