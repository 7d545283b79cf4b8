"""How keys are spelled in Redis. Braces: all that belongs to one channel lies in one cluster slot.

Rules:
- What begins with PREFIX:{SERVICE: is open to the publishers of a service: their ACL pattern covers it. What only nodes
  may say of a channel, or write, begins with PREFIX:nodes{SERVICE: instead, and no pattern of a publisher covers that.
- A prefix has no brace, and every other name has a colon in front of its first brace: so the two never meet.
- The text behind a name's last closing brace says what the name is for. A channel may contain braces; what follows the
  last brace must not. So no two pairs of kind and channel share a name.
"""

from collections.abc import Callable

__all__ = [
    "DIRECT_KEY",
    "canary_name",
    "channel_name",
    "claim_key",
    "counts_key",
    "direct_prefix",
    "doubt_key",
    "index_lock_key",
    "indexed_run_key",
    "leases_key",
    "names_key",
    "node_channel_name",
    "node_key",
    "nodes_key",
    "once_key",
    "owned_key",
    "reaped_key",
    "revocations_key",
    "roster_key",
    "rule_lines_key",
    "rules_key",
    "sharded_canary_name",
    "state_key",
    "stream_key",
    "taken_key",
    "token_key",
]

# No service can be called "nodes" with nothing after it (a key is SERVICE:NAME), so nothing collides with these;
# nor with what has a blank in front of its first colon.

CANARIES_MAX = 50_000  # a shard with one slot of 16,384 is found by then, almost surely
DIRECT_KEY = "direct "  # a node's id follows: the key of a channel that no service can have


def channel_name(prefix: str, key: str) -> bytes:
    """Redis channel of a channel key, open to publishers: PREFIX:{KEY}."""
    return f"{prefix}:{{{key}}}".encode()


def node_channel_name(prefix: str, key: str) -> bytes:
    """Redis channel of a channel key on which only nodes publish: PREFIX:nodes{KEY}. In the slot of `channel_name`."""
    return f"{prefix}:nodes{{{key}}}".encode()


def nodes_key(prefix: str) -> str:
    """The set of node ids."""
    return f"{prefix}:{{nodes}}"


def node_key(prefix: str, node_id: str) -> str:
    """What one node says of itself."""
    return f"{prefix}:{{nodes}}:{node_id}"


def canary_name(prefix: str, node_id: str) -> bytes:
    """The Redis channel on which a node hears itself."""
    return f"{prefix}:{{nodes}}:canary:{node_id}".encode()


def sharded_canary_name(prefix: str, node_id: str, is_here: Callable[[bytes], bool]) -> bytes:
    """The same in one shard of a Cluster: the first of some names that is there."""
    for number in range(CANARIES_MAX):
        name = f"{prefix}:{{canary {number}}}:{node_id}".encode()
        if is_here(name):
            return name
    return canary_name(prefix, node_id)  # a shard with hardly any slots: it will be refused, and seen to be deaf


# Two colons: no node is called ":leases".


def leases_key(prefix: str) -> bytes:
    """Sorted set: NODE:INCARNATION by when its lease ends, milliseconds of Redis time."""
    return f"{prefix}:{{nodes}}::leases".encode()


def rule_lines_key(prefix: str) -> bytes:
    """Hash: the rule tables of the nodes, by their digests."""
    return f"{prefix}:{{nodes}}::rules:lines".encode()


def rules_key(prefix: str) -> bytes:
    """String: all rule tables of the nodes, a JSON list. The function snorky_publish reads it."""
    return f"{prefix}:{{nodes}}::rules".encode()


def doubt_key(prefix: str) -> bytes:
    """String: names the last time that a foreign function library was replaced."""
    return f"{prefix}:{{nodes}}::rules:doubt".encode()


def reaped_key(prefix: str) -> bytes:
    """Sorted set: dead NODE:INCARNATION by when it is to be swept again, milliseconds of Redis time."""
    return f"{prefix}:{{nodes}}::reaped".encode()


def index_lock_key(prefix: str) -> bytes:
    """String: which node makes the indexes of all owners whole."""
    return f"{prefix}:{{nodes}}::index".encode()


def indexed_run_key(prefix: str, run: str) -> bytes:
    """String: after this run of a server began, the indexes of all owners were made whole."""
    return f"{prefix}:{{nodes}}::indexed:{run}".encode()


def claim_key(prefix: str, owner: str) -> bytes:
    """Which reaper fenced NODE:INCARNATION."""
    return f"{prefix}:{{nodes}}::claim:{owner}".encode()


def owned_key(prefix: str, owner: str) -> bytes:
    """The index of NODE:INCARNATION: what its connections are in."""
    return f"{prefix}:{{owned:{owner}}}".encode()


def roster_key(prefix: str, key: str) -> bytes:
    """Hash: the members of a roster."""
    return node_channel_name(prefix, key) + b":roster"


def counts_key(prefix: str, key: str) -> bytes:
    """Hash: entries per identity of a roster, and its version."""
    return node_channel_name(prefix, key) + b":roster:counts"


def state_key(prefix: str, key: str) -> bytes:
    """Hash: where a channel's history stands."""
    return channel_name(prefix, key) + b":position"


def stream_key(prefix: str, key: str) -> bytes:
    """Stream: what a channel keeps."""
    return channel_name(prefix, key) + b":history"


def once_key(prefix: str, key: str, once: str) -> bytes:
    """The position of what was published to a channel under an idempotency key, in which % and } are escaped.

    snorky_publish.lua spells it alike. Else the key `x}:position` of one channel would be the state of another.
    """
    return channel_name(prefix, key) + b":once:" + once.replace("%", "%25").replace("}", "%7D").encode()


def names_key(prefix: str, key: str) -> bytes:
    """Hash: names and who holds them."""
    return f"{prefix}:{{names {key}}}".encode()


def token_key(prefix: str, token: str) -> bytes:
    """What one token stands for."""
    return f"{prefix}:{{token:{token}}}".encode()


def taken_key(prefix: str, token: str) -> bytes:
    """The value of a token that was taken, and who took it."""
    return token_key(prefix, token) + b":taken"


def direct_prefix(prefix: str) -> bytes:
    """How the Redis channel of a node's direct messages begins; its id and "}" follow."""
    return f"{prefix}:{{{DIRECT_KEY}".encode()


def revocations_key(prefix: str) -> str:
    """The sorted set of revoked identities and tokens."""
    return f"{prefix}:{{revocations}}"
