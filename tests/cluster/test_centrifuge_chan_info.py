"""Centrifuge clients: `chan_info`, what a subscription token says about its client, on all nodes, live and listed."""

from typing import Any

import cent
import pytest

from tests.support.clients import pusher
from tests.support.clients.centrifuge import connected
from tests.support.scenarios.attribute_nodes import ANN, ENV, KEPT, MIXED, ROLE, Connect, backend_api, called, each_form
from tests.support.scenarios.centrifuge_nodes import token
from tests.support.scenarios.protocol_nodes import Nodes


@pytest.fixture
async def urls(nodes: Nodes) -> list[str]:
    return [await nodes.start(**ENV) for _ in range(3)]


def subscription(user: str, channel: str = "told", **claims: Any) -> str:
    """Make a subscription token."""
    return token(user, channel=channel, ops=["subscribe", "publish", "presence", "history"], **claims)


@each_form
async def test_presence_joins_leaves_and_publications_have_the_info_of_a_subscription(
    nodes: Nodes, urls: list[str], connect: Connect
) -> None:
    async with (
        backend_api(nodes) as api,
        connect(urls[0], token("eve")) as eve,
        connect(urls[1], token("ann", info=ANN)) as ann,
    ):
        await eve.call("subscribe", channel="told", token=subscription("eve", info=False))
        without = (await eve.push("told", "join"))["info"]
        assert without == {"user": "eve", "client": without["client"], "chan_info": False}
        await ann.call("subscribe", channel="told", token=subscription("ann", info=ROLE))
        own = (await ann.push("told", "join"))["info"]
        assert own == {"user": "ann", "client": own["client"], "conn_info": ANN, "chan_info": ROLE}
        assert (await eve.push("told", "join"))["info"] == own
        everybody = {each["client"]: each for each in (without, own)}
        assert (await eve.call("presence", channel="told"))["presence"] == everybody
        assert (await called(nodes, "presence", channel="told"))["result"]["presence"] == everybody
        found = (await api.presence(cent.PresenceRequest(channel="told"))).presence
        assert {client: info.chan_info for client, info in found.items()} == {
            own["client"]: ROLE,
            without["client"]: False,
        }
        await ann.call("publish", channel="told", data=1)
        assert await eve.push("told", "pub") == {"data": 1, "offset": 1, "info": own}
        await ann.call("sub_refresh", channel="told", token=subscription("ann", info="later"))
        await ann.call("publish", channel="told", data=2)
        assert (await eve.push("told", "pub"))["info"] == own | {"chan_info": "later"}
        assert (await eve.call("presence", channel="told"))["presence"] == everybody, "an entry stays as it is"
        await ann.call("unsubscribe", channel="told")
        assert (await eve.push("told", "leave"))["info"] == own


async def test_info_of_a_subscription_belongs_to_its_channel(urls: list[str]) -> None:
    async with connected(urls[0], token("ann")) as ann:
        await ann.call("subscribe", channel="told", token=subscription("ann", info=ROLE))
        await ann.call("subscribe", channel=KEPT)
        await ann.call("publish", channel=KEPT, data=1)
        assert (await ann.push(KEPT, "pub"))["info"].keys() == {"user", "client"}
        await ann.call("unsubscribe", channel="told")
        await ann.call("subscribe", channel="told", token=subscription("ann"))
        joins = [(await ann.push("told", "join"))["info"] for _ in range(2)]
        assert ["chan_info" in each for each in joins] == [True, False]


async def test_info_of_a_subscription_that_is_too_large_is_left_out(urls: list[str]) -> None:
    async with connected(urls[0], token("ann", info=ANN)) as ann:
        await ann.call("subscribe", channel="told", token=subscription("ann", info="x" * 4_200))
        info = (await ann.push("told", "join"))["info"]
        assert info == {"user": "ann", "client": info["client"], "conn_info": ANN}


async def test_members_of_a_presence_channel_see_the_info_of_the_connection_only(urls: list[str]) -> None:
    async with pusher.connected(urls[0]) as pat, connected(urls[1], token("ann", info=ANN)) as ann:
        pair = {"conn_info": 1, "chan_info": 2}  # what looks like both infos is only one
        await pat.subscribe(MIXED, pusher.member("pat", **pair))
        await ann.call("subscribe", channel=MIXED, token=subscription("ann", MIXED, info=ROLE))
        assert await pat.data("pusher_internal:member_added", MIXED) == {"user_id": "ann", "user_info": ANN}
        async with pusher.connected(urls[2]) as paul:
            told = await paul.subscribe(MIXED, pusher.member("paul", name="Paul"))
            assert told["presence"]["hash"] == {"ann": ANN, "pat": pair, "paul": {"name": "Paul"}}
        found = (await ann.call("presence", channel=MIXED))["presence"].values()
        infos = {each["user"]: (each["conn_info"], each.get("chan_info")) for each in found}
        assert infos["ann"] == (ANN, ROLE) and infos["pat"] == (pair, None)
