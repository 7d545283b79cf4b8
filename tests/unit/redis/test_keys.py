"""Spelling of keys: no two things share a name, and a publisher's pattern covers nothing of the nodes'."""

from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from snorky.gateway.protocol.channel_names import channel_key
from snorky.gateway.redis import keys as names

KINDS: dict[str, Callable[[str, str], bytes]] = {
    "channel": names.channel_name,
    "node channel": names.node_channel_name,
    "state": names.state_key,
    "stream": names.stream_key,
    "roster": names.roster_key,
    "counts": names.counts_key,
}
PUBSUB = {"channel", "node channel"}
OF_PUBLISHERS = {"channel", "state", "stream", "once"}
TEXT = st.text(st.sampled_from("ab{}:% ~") | st.sampled_from("é\0"), max_size=4)
LOOKS = st.sampled_from([":position", ":history", ":roster", ":roster:counts", ":once:", ":once:given ", "}", "%7D"])
NAME = st.lists(TEXT | LOOKS, max_size=5).map("".join)
SERVICE = st.sampled_from(["pubsub", "chat", "nodes", "token", "owned", "a"])


@st.composite
def things(draw: st.DrawFn) -> tuple[str, ...]:
    """One thing that has a name in Redis: its kind, and what distinguishes it from others of its kind."""
    kind = draw(st.sampled_from([*KINDS, "once", "token", "taken", "node", "names", "owned"]))
    if kind in KINDS:
        return kind, channel_key(draw(SERVICE), draw(NAME))
    if kind == "once":
        return kind, channel_key(draw(SERVICE), draw(NAME)), draw(NAME)
    if kind == "names":
        return kind, channel_key(draw(SERVICE), draw(NAME))
    return kind, draw(NAME if kind in ("token", "taken") else st.text("abc.-_019", min_size=1, max_size=4))


def spelled(thing: tuple[str, ...]) -> bytes:
    match thing:
        case "once", key, once:
            return names.once_key("snorky", key, once)
        case "token", token:
            return names.token_key("snorky", token)
        case "taken", token:
            return names.taken_key("snorky", token)
        case "node", node_id:
            return names.node_key("snorky", node_id).encode()
        case "names", key:
            return names.names_key("snorky", key)
        case "owned", owner:
            return names.owned_key("snorky", owner)
        case kind, key:
            return KINDS[kind]("snorky", key)
    raise AssertionError(thing)


@given(things(), things())
@example(("once", "pubsub:a", "given x}:position"), ("state", "pubsub:a}:once:given x"))
@example(("once", "pubsub:a", "b}:once:c"), ("once", "pubsub:a}:once:b", "c"))
@example(("once", "pubsub:a", "x}"), ("once", "pubsub:a", "x%7D"))
@example(("state", "pubsub:a"), ("channel", "pubsub:a}:position"))
@example(("token", "ab"), ("channel", "token:ab"))
def test_two_things_never_share_a_name(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    is_same_kind = (one[0] in PUBSUB) is (other[0] in PUBSUB)  # Redis has channels and keys of the same names
    assert (is_same_kind and spelled(one) == spelled(other)) is (one == other)


@given(things())
@example(("roster", "pubsub:a"))
@example(("node channel", "pubsub:a"))
def test_the_pattern_of_a_publisher_covers_exactly_its_channels(thing: tuple[str, ...]) -> None:
    is_covered = spelled(thing).startswith(b"snorky:{pubsub:")
    assert is_covered is (thing[0] in OF_PUBLISHERS and thing[1].startswith("pubsub:"))


def test_ordinary_names_are_as_documented() -> None:
    assert names.channel_name("snorky", "pubsub:kept:1") == b"snorky:{pubsub:kept:1}"
    assert names.state_key("snorky", "pubsub:kept:1") == b"snorky:{pubsub:kept:1}:position"
    assert names.stream_key("snorky", "pubsub:kept:1") == b"snorky:{pubsub:kept:1}:history"
    assert names.once_key("snorky", "pubsub:a", "given backend order 7") == (
        b"snorky:{pubsub:a}:once:given backend order 7"
    )
    assert names.node_channel_name("snorky", "pubsub:a") == b"snorky:nodes{pubsub:a}"
    assert names.roster_key("snorky", "pubsub:a") == b"snorky:nodes{pubsub:a}:roster"
