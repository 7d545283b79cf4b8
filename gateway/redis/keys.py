"""Names of keys and channels in Redis. Braces (hash tags) put everything of one channel into one Cluster slot.

Rules:
- Names that begin with PREFIX:{SERVICE: are open to the publishers of that service: their ACL pattern matches them.
  Channels and keys for nodes only begin with PREFIX:nodes{SERVICE: instead, which no publisher's pattern matches.
- A prefix contains no brace, and all other names have a colon before their first brace, so the two never collide.
- The text after the last closing brace is the kind of the name. A channel may contain braces; the kind must not. So
  different pairs of kind and channel have different names.
"""

from collections.abc import Callable

__all__ = [
    "DIRECT_KEY",
    "announced_order_key",
    "canary_name",
    "channel_name",
    "claim_key",
    "counts_key",
    "direct_prefix",
    "doubt_key",
    "index_lock_key",
    "indexed_run_key",
    "leases_key",
    "limit_demands_key",
    "limit_owners_key",
    "limit_settling_key",
    "limit_units_key",
    "names_key",
    "node_channel_name",
    "node_key",
    "nodes_key",
    "once_key",
    "order_result_key",
    "orders_key",
    "owned_key",
    "reaped_key",
    "revocations_key",
    "roster_key",
    "rule_lines_key",
    "rules_key",
    "sharded_canary_name",
    "state_key",
    "stream_key",
    "subscribed_key",
    "subscriptions_key",
    "taken_key",
    "token_key",
    "webhooks_key",
]

# A service's key is SERVICE:NAME, so it never equals "nodes", and it has no blank before its first colon. So the names
# below collide with no channel.

CANARIES_MAX = 50_000  # names tried: enough, almost surely, to hit a shard with one slot of 16,384
DIRECT_KEY = "direct "  # followed by a node's id: a channel key that no service can have


def channel_name(prefix: str, key: str) -> bytes:
    """The Redis channel of a channel key, open to publishers: PREFIX:{KEY}."""
    return f"{prefix}:{{{key}}}".encode()


def node_channel_name(prefix: str, key: str) -> bytes:
    """The Redis channel of a channel key for nodes only: PREFIX:nodes{KEY}. In the same slot as `channel_name`."""
    return f"{prefix}:nodes{{{key}}}".encode()


def nodes_key(prefix: str) -> str:
    """Set: the ids of nodes."""
    return f"{prefix}:{{nodes}}"


def node_key(prefix: str, node_id: str) -> str:
    """String: the state of one node, JSON."""
    return f"{prefix}:{{nodes}}:{node_id}"


def canary_name(prefix: str, node_id: str) -> bytes:
    """The Redis channel of a node's canary."""
    return f"{prefix}:{{nodes}}:canary:{node_id}".encode()


def sharded_canary_name(prefix: str, node_id: str, is_here: Callable[[bytes], bool]) -> bytes:
    """The Redis channel of a node's canary in one shard of a Cluster. is_here: True if the shard has a name's slot."""
    for number in range(CANARIES_MAX):
        name = f"{prefix}:{{canary {number}}}:{node_id}".encode()
        if is_here(name):
            return name
    return canary_name(prefix, node_id)  # a shard with hardly any slots: subscribing fails, so Redis is unverified


# Two colons, because no node id begins with a colon.


def leases_key(prefix: str) -> bytes:
    """Sorted set: NODE:INCARNATION by the expiry of its lease, milliseconds of Redis time."""
    return f"{prefix}:{{nodes}}::leases".encode()


def rule_lines_key(prefix: str) -> bytes:
    """Hash: the rule tables of the nodes, by their digests."""
    return f"{prefix}:{{nodes}}::rules:lines".encode()


def rules_key(prefix: str) -> bytes:
    """String: all rule tables of the nodes, a JSON list. The function snorky_publish reads it."""
    return f"{prefix}:{{nodes}}::rules".encode()


def doubt_key(prefix: str) -> bytes:
    """String: the mark of the last doubt (see `library_instance`), for nodes of the previous version."""
    return f"{prefix}:{{nodes}}::rules:doubt".encode()


def reaped_key(prefix: str) -> bytes:
    """Sorted set: dead NODE:INCARNATION by the time of its next sweep, milliseconds of Redis time."""
    return f"{prefix}:{{nodes}}::reaped".encode()


def index_lock_key(prefix: str) -> bytes:
    """String: the node that is rebuilding the indexes of all owners; a lock."""
    return f"{prefix}:{{nodes}}::index".encode()


def indexed_run_key(prefix: str, run: str) -> bytes:
    """String: exists if the indexes of all owners were rebuilt after this run of a server began."""
    return f"{prefix}:{{nodes}}::indexed:{run}".encode()


def claim_key(prefix: str, owner: str) -> bytes:
    """String: the reaper that fenced NODE:INCARNATION."""
    return f"{prefix}:{{nodes}}::claim:{owner}".encode()


def orders_key(prefix: str) -> bytes:
    """Stream: the control orders of the last minute."""
    return f"{prefix}:{{nodes}}::orders".encode()


def announced_order_key(prefix: str) -> bytes:
    """Stream: one entry, with the id of the last control order. Nodes wait for it."""
    return f"{prefix}:{{nodes}}::orders:announced".encode()


def order_result_key(prefix: str, order_id: str) -> bytes:
    """Hash: how many connections each node has reached with a control order."""
    return f"{prefix}:{{nodes}}::order:{order_id}".encode()


def owned_key(prefix: str, owner: str) -> bytes:
    """Set: the index of NODE:INCARNATION, with the roster entries and names of its connections."""
    return f"{prefix}:{{owned:{owner}}}".encode()


def limit_demands_key(prefix: str, bucket: int, node_id: str) -> bytes:
    """Hash: the demands of one node in a bucket, by limit and name."""
    return f"{prefix}:{{limits {bucket}}}:demands:{node_id}".encode()


def limit_owners_key(prefix: str, bucket: int) -> bytes:
    """Set: the ids of nodes that count something in a bucket of limits."""
    return f"{prefix}:{{limits {bucket}}}:owners".encode()


def limit_settling_key(prefix: str, bucket: int) -> bytes:
    """String: exists while nodes write again what they count in a bucket, after a loss of data."""
    return f"{prefix}:{{limits {bucket}}}:settling".encode()


def limit_units_key(prefix: str, bucket: int, node_id: str) -> bytes:
    """Hash: what one node counts in a bucket, by limit and name."""
    return f"{prefix}:{{limits {bucket}}}:units:{node_id}".encode()


def roster_key(prefix: str, key: str) -> bytes:
    """Hash: the entries of a roster."""
    return node_channel_name(prefix, key) + b":roster"


def counts_key(prefix: str, key: str) -> bytes:
    """Hash: the number of entries per identity of a roster, its size and its version."""
    return node_channel_name(prefix, key) + b":roster:counts"


def state_key(prefix: str, key: str) -> bytes:
    """Hash: the state of a channel's history: epoch, last offset, last tag."""
    return channel_name(prefix, key) + b":position"


def stream_key(prefix: str, key: str) -> bytes:
    """Stream: the history of a channel."""
    return channel_name(prefix, key) + b":history"


def once_key(prefix: str, key: str, once: str) -> bytes:
    """String: the position of the publication with an idempotency key. % and } in the key are escaped.

    snorky_publish.lua escapes in the same way. Without it, the key `x}:position` of one channel would be another
    channel's state.
    """
    return channel_name(prefix, key) + b":once:" + once.replace("%", "%25").replace("}", "%7D").encode()


def names_key(prefix: str, key: str) -> bytes:
    """Hash: unique names and their owners."""
    return f"{prefix}:{{names {key}}}".encode()


def token_key(prefix: str, token: str) -> bytes:
    """String: the value of a token."""
    return f"{prefix}:{{token:{token}}}".encode()


def taken_key(prefix: str, token: str) -> bytes:
    """String: the taker of a token that was taken, and its value."""
    return token_key(prefix, token) + b":taken"


def subscriptions_key(prefix: str, identity: str) -> bytes:
    """Hash: the server-side subscriptions of an identity."""
    return f"{prefix}:{{subscriptions {identity}}}".encode()


def subscribed_key(prefix: str, key: str) -> bytes:
    """String: the generation of the stored server-side subscriptions to a channel."""
    return f"{prefix}:{{subscribed {key}}}".encode()


def direct_prefix(prefix: str) -> bytes:
    """The prefix of the Redis channels for direct messages; followed by the node's id and "}"."""
    return f"{prefix}:{{{DIRECT_KEY}".encode()


def revocations_key(prefix: str) -> str:
    """Sorted set: revoked identities and tokens."""
    return f"{prefix}:{{revocations}}"


def webhooks_key(prefix: str, app_id: str, part: str) -> bytes:
    """What nodes share for the webhooks of an app; see `webhook_exchange.lua`."""
    return f"{prefix}:{{webhooks {app_id}}}:{part}".encode()
