"""gateway/redis/history/rule_tables.py: rules as nodes store them in Redis for each other."""

import json

from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.contracts.history import History, history_of
from snorky.gateway.redis.history.rule_tables import RuleTables, write_table

RULES = Rules(
    [
        ChannelRule("user:{identity}", history=3, allow_subscribe="owner"),
        ChannelRule("shop:{claims.shops}:*", history=5, history_ttl_s=60.0),
        ChannelRule("a*b", history=7),
        ChannelRule("user:*"),
    ]
)


def test_table_has_the_literals_of_patterns_and_nothing_of_permissions() -> None:
    table = json.loads(write_table({"pubsub": RULES, "chat": Rules()}))
    assert table == {
        "pubsub": [
            ["3", "300000", [""], ["user:"]],
            ["5", "60000", [":", ""], ["shop:"]],
            ["7", "300000", ["a", "b"]],
            ["0", "0", ["user:", ""]],
        ]
    }


NAMES = st.text("asb:./", max_size=4).flatmap(lambda tail: st.sampled_from([f"user:{tail}", f"shop:{tail}", tail]))


@given(name=NAMES)
def test_another_node_finds_the_same_history_by_the_table(name: str) -> None:
    tables = RuleTables(f"[{write_table({'pubsub': RULES})}]")
    assert tables.promised("pubsub", name, None) == history_of(RULES.find(name))
    assert tables.promised("pubsub", name, History(900.0, 1)) is not None
