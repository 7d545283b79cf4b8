"""Whom the clients of a node watch, and what each is told of them."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.http.protocols.pusher.users.client_watchlist import ClientWatchlist
from snorky.gateway.http.protocols.pusher.users.online_users import OnlineUsers, online_users_of
from snorky.gateway.http.protocols.pusher.users.watched import Watched, Watcher, user_key
from snorky.gateway.testing import memory_cluster
from tests.support.clients.pusher import SECRET, watchlist_events_in

BOB, EVE, ZOE = (user_key("shop", each) for each in ("bob", "eve", "zoe"))


def taken(watched: Watched) -> list[tuple[Watcher, dict[str, list[str]]]]:
    found = []
    while (each := watched.take()) is not None:
        if each[1]:
            found.append((each[0], watchlist_events_in(each[1])))
    return found


def test_client_is_told_in_one_event_when_all_of_its_users_are_known() -> None:
    watched, ann = Watched(), Watcher([ZOE, BOB, EVE, BOB], print)
    assert watched.add(ann) == [ZOE, BOB, EVE]
    watched.set(BOB, is_online=True)
    watched.set(ZOE, is_online=True)
    assert taken(watched) == []
    watched.set(EVE, is_online=False)
    assert taken(watched) == [(ann, {"online": ["zoe", "bob"]})]
    dan = Watcher([EVE, BOB], print)
    assert watched.add(dan) == []
    assert taken(watched) == [(dan, {"online": ["bob"]})], "all are known already"


def test_changes_at_one_moment_are_one_event_and_those_that_cancel_each_other_none() -> None:
    watched, ann = Watched(), Watcher([BOB, EVE], print)
    watched.add(ann)
    watched.set(BOB, is_online=True)
    watched.set(EVE, is_online=False)
    assert taken(watched) == [(ann, {"online": ["bob"]})]
    watched.set(BOB, is_online=False)
    watched.set(EVE, is_online=True)
    assert taken(watched) == [(ann, {"online": ["eve"], "offline": ["bob"]})]
    watched.set(EVE, is_online=False)
    watched.set(EVE, is_online=True)
    assert taken(watched) == []


def test_list_that_does_not_fit_is_refused_as_a_whole() -> None:
    watched, ann, dan = Watched(users_max=2), Watcher([BOB], print), Watcher([BOB, EVE, ZOE], print)
    assert watched.add(ann) == [BOB]
    assert watched.add(dan) is None and watched.keys() == [BOB]
    assert watched.discard(dan) == []
    assert watched.add(Watcher([BOB, EVE], print)) == [EVE]
    assert watched.add(Watcher([EVE], print)) == [], "known users take no place"


def test_all_lists_together_have_a_limited_number_of_users() -> None:
    watched, ann, dan = Watched(entries_max=3), Watcher([BOB, EVE], print), Watcher([BOB, EVE], print)
    assert watched.add(ann) == [BOB, EVE]
    assert watched.add(dan) is None, "although these users are watched already"
    assert watched.add(Watcher([EVE], print)) == []
    watched.set(BOB, is_online=True)
    watched.set(EVE, is_online=True)
    assert dan not in dict(taken(watched))
    for _ in range(2):
        watched.discard(ann)
        watched.discard(dan)
    assert watched.add(dan) == [BOB]
    assert watched.add(ann) is None


def test_client_costs_a_limited_number_of_bytes() -> None:
    watched = Watched()
    users = [user_key("shop", f"user-{number}") for number in range(100)]
    watched.add(Watcher(users, print))
    for key in users:
        watched.set(key, is_online=True)
    tracemalloc.start()
    try:
        watchers = [Watcher(users, print) for _ in range(500)]
        before = tracemalloc.get_traced_memory()[0]
        for watcher in watchers:
            watched.add(watcher)
        taken(watched)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / 500 < 6_000, used / 500


def test_list_that_replaces_another_begins_with_what_the_client_knows() -> None:
    watched, before = Watched(), Watcher([BOB, EVE], print)
    watched.add(before)
    for key in (BOB, EVE):
        watched.set(key, is_online=True)
    taken(watched)
    watched.set(BOB, is_online=False)  # it has not been told yet
    after = Watcher([ZOE, EVE, BOB], print, after=before)
    watched.add(after)
    watched.discard(before)
    assert taken(watched) == []
    watched.set(ZOE, is_online=True)
    assert taken(watched) == [(after, {"online": ["zoe"], "offline": ["bob"]})]


def test_user_who_is_not_known_is_not_said_to_be_offline() -> None:
    watched, before = Watched(), Watcher([BOB], print)
    watched.add(before)
    watched.set(BOB, is_online=True)
    taken(watched)
    watched.discard(before)
    after = Watcher([BOB], print, after=before)
    watched.add(after)
    watched.begin(after)
    assert taken(watched) == []
    watched.set(BOB, is_online=False)
    assert taken(watched) == [(after, {"offline": ["bob"]})]


async def test_client_watches_the_users_of_its_last_list_until_its_connection_ends() -> None:
    app = PusherApp(id="shop", key="shop-key", secret=SECRET, watchlists=True)
    async with memory_cluster(1, lambda: [OnlineUsers()]) as cluster:
        node, client = cluster.nodes[0], await cluster.connect(0, "ann")
        users, watchlist = online_users_of(node), ClientWatchlist(node, app, client.connection)
        assert users is not None
        assert watchlist.watch(["bob"]) is None
        users._watched.set(BOB, is_online=True)
        assert watchlist.watch(["zoe", "bob"]) is None and len(users._watched) == 2
        assert users._watched.is_online(BOB), "users on both lists stay known"
        client.connection.close(4100)
        assert watchlist.watch(["bob", "eve"]) is None and len(users._watched) == 0


def test_ids_of_users_may_contain_blanks() -> None:
    watched, ann = Watched(), Watcher([user_key("shop", "a b  c ")], print)
    watched.add(ann)
    watched.set("shop a b  c ", is_online=True)
    assert taken(watched) == [(ann, {"online": ["a b  c "]})]


@given(st.lists(st.tuples(st.sampled_from("+-set"), st.integers(0, 3), st.sampled_from("abc"), st.booleans())))
def test_clients_know_the_state_of_their_users_after_each_event(steps: list[tuple[str, int, str, bool]]) -> None:
    watched = Watched()
    watchers: dict[int, Watcher] = {}
    known: dict[Watcher, set[str]] = {}
    state: dict[str, bool] = {}
    for what, number, letter, flag in steps:
        if what == "+" and number not in watchers:
            watcher = watchers[number] = Watcher(
                [user_key("s", each) for each in ("ab", "bc", "c", "abc")[number]], print
            )
            known[watcher] = set()
            watched.add(watcher)
        elif what == "-" and number in watchers:
            for key in watched.discard(watchers.pop(number)):
                state.pop(key, None)
        elif user_key("s", letter) in watched:
            state[user_key("s", letter)] = flag
            watched.set(user_key("s", letter), is_online=flag)
        if flag:
            continue  # some changes are taken together
        for watcher, events in taken(watched):
            assert watcher in watchers.values()
            come, gone = set(events.get("online", ())), set(events.get("offline", ()))
            assert not come & known[watcher] and gone <= known[watcher]
            known[watcher] = (known[watcher] | come) - gone
        for watcher in watchers.values():
            are_known = all(key in state for key in watcher.users)
            online = {key.partition(" ")[2] for key in watcher.users if state.get(key)}
            assert known[watcher] == (online if are_known else set())
    assert set(watched.keys()) == {key for each in watchers.values() for key in each.users}
