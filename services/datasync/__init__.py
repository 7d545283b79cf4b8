"""DataSync: clients follow changes of a database, which the backend publishes as deltas.

The backend authorizes a subscription and gives its token to a client, which acquires it on any node. Dealers decide
which deltas a subscription gets. Deltas published between authorization and acquisition are delivered too.
"""

from snorky.services.datasync.backend import DataSyncBackend
from snorky.services.datasync.dealers import BroadcastDealer, Dealer, FilterDealer, SimpleDealer
from snorky.services.datasync.deltas import Delta
from snorky.services.datasync.filters import BadQuery
from snorky.services.datasync.service import DataSyncService
from snorky.services.datasync.subscriptions import SubscriptionItem

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
