"""DataSync: clients keep what they show in step with a database, by deltas that the backend publishes.

The backend authorizes a subscription and gives its token to a client, which acquires it, on any node. Dealers say which
deltas a subscription gets. Nothing is lost between authorization and acquisition.
"""

from services.datasync.backend import DataSyncBackend
from services.datasync.dealers import BroadcastDealer, Dealer, FilterDealer, SimpleDealer
from services.datasync.deltas import Delta
from services.datasync.filters import BadQuery
from services.datasync.frontend import DataSyncService
from services.datasync.subscriptions import SubscriptionItem

__all__ = [
    "BadQuery",
    "BroadcastDealer",
    "DataSyncBackend",
    "DataSyncService",
    "Dealer",
    "Delta",
    "FilterDealer",
    "SimpleDealer",
    "SubscriptionItem",
]
