"""How keys are spelled in Redis. Braces: all that belongs to one channel lies in one cluster slot."""

__all__ = ["canary_name", "channel_name", "node_key", "nodes_key", "revocations_key"]

# No service can be called "nodes" with nothing after it (a key is SERVICE:NAME), so nothing collides with these.


def channel_name(prefix: str, key: str) -> bytes:
    """Redis channel of a channel key: PREFIX:{KEY}."""
    return f"{prefix}:{{{key}}}".encode()


def nodes_key(prefix: str) -> str:
    """The set of node ids."""
    return f"{prefix}:{{nodes}}"


def node_key(prefix: str, node_id: str) -> str:
    """What one node says of itself."""
    return f"{prefix}:{{nodes}}:{node_id}"


def canary_name(prefix: str, node_id: str) -> bytes:
    """The Redis channel on which a node hears itself."""
    return f"{prefix}:{{nodes}}:canary:{node_id}".encode()


def revocations_key(prefix: str) -> str:
    """The sorted set of revoked identities and tokens."""
    return f"{prefix}:{{revocations}}"
