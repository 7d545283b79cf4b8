"""Which tests run when. `--tier first` selects what `make test` runs in a few minutes; without it, all tests run.

The first tier is what a change breaks first, and needs nothing but Python: the units, the contracts on one server, the
protocol over nodes in one process, the clients, the README's programs, and one test in a browser. The deeper tier adds
other servers (Redis of Debian, Clusters, fakeredis), node processes, load balancers, faults, races, fuzz and a soak.

The files that take longest start first: several processes share the files, and none may be left alone with a long one.
"""

from collections.abc import Sequence
from typing import Final

import pytest

__all__ = ["DEEPER_KINDS", "FIRST", "LONGEST", "NOT_FIRST", "longest_first", "select_first"]

# files and folders of the first tier, relative to the root; of a file, after "::", the only test
FIRST: Final = (
    "clients/python/tests/",
    "tests/unit/",
    "tests/contract/",
    "tests/cluster/test_conformance.py::test_protocol_holds_in_one_process",
    "tests/cluster/test_conformance.py::test_all_members_receive_all_messages_in_the_same_order",
    "tests/cluster/test_recovery.py",
    "tests/e2e/test_readme.py",
    "tests/e2e/test_python_readme.py",
    "tests/e2e/test_demo.py",
    "tests/faults/test_lab_tools.py",
    "tests/faults/test_lab_checker.py",
)

# of these folders, what is not: it installs other versions of the packages that it needs
NOT_FIRST: Final = ("clients/python/tests/test_client_versions.py",)

# parameters that name a kind of server: the same test also runs on Valkey, or on what is kept in memory
DEEPER_KINDS: Final = frozenset({"redis", "fakeredis", "spread", "cluster"})

# The files that take longest, those that run with tests/faults in descending order. Of the others, those
# that compute and those that wait take turns: if all wait at once, the cores are idle.
LONGEST: Final = (
    "tests/faults/test_faults_of_redis.py",
    "tests/faults/test_faults_of_nodes.py",
    "tests/faults/test_cluster.py",
    "tests/e2e/test_centrifuge_python.py",
    "tests/faults/test_broker_faults.py",
    "tests/faults/test_cluster_limits.py",
    "tests/faults/leases/test_server.py",
    "tests/faults/test_shards.py",
    "tests/faults/test_presence.py",
    "tests/faults/leases/test_nodes.py",
    "tests/faults/test_rolling.py",
    "clients/python/tests/test_client_versions.py",
    "tests/e2e/test_centrifuge_js.py",
    "tests/cluster/test_start_stop.py",
    "tests/e2e/test_tutorials.py",
    "tests/e2e/test_sockjs.py",
    "tests/e2e/test_pusher_xhr_js.py",
    "tests/cluster/test_conformance.py",
    "tests/e2e/test_sockjs_browser.py",
    "tests/cluster/test_protocols.py",
    "tests/e2e/test_pusher_fuzz.py",
    "tests/cluster/test_stored_bytes.py",
    "tests/e2e/test_newcomer_pages.py",
    "tests/e2e/test_wheels.py",
    "tests/e2e/test_js_package.py",
    "tests/contract/test_control.py",
    "tests/e2e/test_sse.py",
    "tests/contract/test_subscriptions.py",
    "tests/e2e/test_pusher_js.py",
    "tests/contract/test_limits.py",
    "tests/cluster/test_datasync_over_nodes.py",
    "tests/e2e/test_js_client.py",
    "tests/e2e/test_demo.py",
    "tests/contract/test_webhooks.py",
    "tests/cluster/test_workers.py",
    "tests/e2e/test_fuzz.py",
    "tests/e2e/test_streams_fuzz.py",
    "tests/cluster/test_pusher_watchlists.py",
    "tests/e2e/test_centrifuge_fuzz.py",
    "tests/e2e/test_deploy_rights.py",
    "tests/unit/http/serving/test_bodies.py",
    "tests/e2e/test_permissions_of_tokens.py",
    "tests/e2e/test_one_channel_all_kinds.py",
    "tests/contract/test_broker.py",
    "tests/cluster/test_races.py",
    "tests/cluster/test_centrifuge_attributes.py",
    "tests/cluster/test_centrifuge_chan_info.py",
    "tests/e2e/test_docs.py",
    "tests/e2e/test_examples.py",
    "tests/e2e/test_prometheus.py",
    "tests/cluster/test_shared_redis.py",
    "tests/e2e/test_python_realtime.py",
    "tests/contract/test_directory_ends.py",
    "tests/e2e/test_python_subscription_tokens.py",
    "tests/e2e/test_python_publisher.py",
    "tests/e2e/test_readme.py",
    "tests/cluster/test_centrifuge_info.py",
    "tests/cluster/test_pusher_counts.py",
    "tests/e2e/test_balancer.py",
    "tests/unit/http/backend/test_door.py",
    "tests/cluster/test_directory_cost.py",
    "tests/cluster/test_pusher_webhooks.py",
)


def longest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Sort tests by file: those that take longest, then the others in their order."""
    places = {file: place for place, file in enumerate(LONGEST)}
    return sorted(items, key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def select_first(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Divide tests into those of the first tier and the others."""
    first: list[pytest.Item] = []
    deeper: list[pytest.Item] = []
    for item in items:
        (first if _is_first(item) else deeper).append(item)
    return first, deeper


def _is_first(item: pytest.Item) -> bool:
    if not item.nodeid.startswith(FIRST) or item.nodeid.startswith(NOT_FIRST):
        return False
    call = getattr(item, "callspec", None)
    if call is None or not item.nodeid.startswith("tests/contract/"):
        return True
    return not any(isinstance(value, str) and value in DEEPER_KINDS for value in call.params.values())
