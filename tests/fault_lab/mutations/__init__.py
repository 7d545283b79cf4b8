"""Guards of the gateway, each with the row or test that must fail without it; one table for each area of the code.

    python -m tests.fault_lab.mutations [--only NAME ...]

A guard is found by its exact text. A text that no longer exists is an error, so the tables stay current.
"""

from tests.fault_lab.mutations.attributes import ATTRIBUTES_MUTATIONS
from tests.fault_lab.mutations.batches import BATCH_MUTATIONS
from tests.fault_lab.mutations.centrifuge import CENTRIFUGE_MUTATIONS
from tests.fault_lab.mutations.clients import CLIENTS_MUTATIONS
from tests.fault_lab.mutations.control import CONTROL_MUTATIONS
from tests.fault_lab.mutations.delivery import DELIVERY_MUTATIONS
from tests.fault_lab.mutations.gateway import GATEWAY_MUTATIONS
from tests.fault_lab.mutations.growth import GROWTH_MUTATIONS
from tests.fault_lab.mutations.hooks import HOOKS_MUTATIONS
from tests.fault_lab.mutations.http import HTTP_MUTATIONS
from tests.fault_lab.mutations.idle import IDLE_MUTATIONS
from tests.fault_lab.mutations.js_client import JS_CLIENT_MUTATIONS
from tests.fault_lab.mutations.library import LIBRARY_MUTATIONS
from tests.fault_lab.mutations.limits import LIMITS_MUTATIONS
from tests.fault_lab.mutations.mutation import Mutation, mutate
from tests.fault_lab.mutations.native import NATIVE_MUTATIONS
from tests.fault_lab.mutations.permission_tables import TABLE_MUTATIONS
from tests.fault_lab.mutations.permissions import PERMISSION_MUTATIONS
from tests.fault_lab.mutations.process import PROCESS_MUTATIONS
from tests.fault_lab.mutations.protocols import PROTOCOLS_MUTATIONS
from tests.fault_lab.mutations.pusher import PUSHER_MUTATIONS
from tests.fault_lab.mutations.pusher_api import PUSHER_API_MUTATIONS
from tests.fault_lab.mutations.pusher_counts import PUSHER_COUNTS_MUTATIONS
from tests.fault_lab.mutations.pusher_guards import PUSHER_GUARDS_MUTATIONS
from tests.fault_lab.mutations.pusher_watchlists import PUSHER_WATCHLISTS_MUTATIONS
from tests.fault_lab.mutations.pusher_webhooks import PUSHER_WEBHOOKS_MUTATIONS
from tests.fault_lab.mutations.pusher_xhr import PUSHER_XHR_MUTATIONS
from tests.fault_lab.mutations.reads import READS_MUTATIONS
from tests.fault_lab.mutations.redis import REDIS_MUTATIONS
from tests.fault_lab.mutations.scripts import SCRIPTS_MUTATIONS
from tests.fault_lab.mutations.services import SERVICES_MUTATIONS
from tests.fault_lab.mutations.sockjs import SOCKJS_MUTATIONS
from tests.fault_lab.mutations.subscriptions import SUBSCRIPTION_MUTATIONS

__all__ = ["MUTATIONS", "Mutation", "mutate"]

MUTATIONS: tuple[Mutation, ...] = (
    *DELIVERY_MUTATIONS,
    *GATEWAY_MUTATIONS,
    *REDIS_MUTATIONS,
    *READS_MUTATIONS,
    *IDLE_MUTATIONS,
    *GROWTH_MUTATIONS,
    *BATCH_MUTATIONS,
    *LIBRARY_MUTATIONS,
    *SCRIPTS_MUTATIONS,
    *NATIVE_MUTATIONS,
    *HTTP_MUTATIONS,
    *HOOKS_MUTATIONS,
    *SOCKJS_MUTATIONS,
    *PROTOCOLS_MUTATIONS,
    *CENTRIFUGE_MUTATIONS,
    *ATTRIBUTES_MUTATIONS,
    *PUSHER_MUTATIONS,
    *PUSHER_GUARDS_MUTATIONS,
    *PUSHER_WEBHOOKS_MUTATIONS,
    *PUSHER_COUNTS_MUTATIONS,
    *PUSHER_WATCHLISTS_MUTATIONS,
    *PUSHER_XHR_MUTATIONS,
    *PUSHER_API_MUTATIONS,
    *SERVICES_MUTATIONS,
    *PERMISSION_MUTATIONS,
    *TABLE_MUTATIONS,
    *CONTROL_MUTATIONS,
    *LIMITS_MUTATIONS,
    *SUBSCRIPTION_MUTATIONS,
    *CLIENTS_MUTATIONS,
    *JS_CLIENT_MUTATIONS,
    *PROCESS_MUTATIONS,
)
