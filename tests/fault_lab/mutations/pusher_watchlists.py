"""Guards of watchlists: who is online and for how long, true after losses, bounded, and for nobody else."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["PUSHER_WATCHLISTS_MUTATIONS"]

CLIENT = "gateway/http/protocols/pusher/client.py"
LIST = "gateway/http/protocols/pusher/users/client_watchlist.py"
USERS = "gateway/http/protocols/pusher/users/online_users.py"
WATCHED = "gateway/http/protocols/pusher/users/watched.py"
UNIT = "tests/unit/http/protocols/pusher/test_watchlists.py"
UNIT_WATCHED = "tests/unit/http/protocols/pusher/test_watched.py"
HERE = "tests/cluster/test_pusher_watchlists.py"

PUSHER_WATCHLISTS_MUTATIONS: tuple[Mutation, ...] = (
    # -- what a client may watch
    Mutation(
        guard="watchlists: off unless the app has them",
        file=LIST,
        old="online_users_of(node) if app.watchlists else None",
        new="online_users_of(node)",
        argv=test(HERE, "test_app_without_watchlists_says_so_and_stores_nothing"),
    ),
    Mutation(
        guard="watchlists: a hundred users",
        file=LIST,
        old="        if len(keys) > WATCHLIST_MAX:\n",
        new="        if False:\n",
        argv=test(HERE, "test_watchlist_has_at_most_a_hundred_different_users"),
    ),
    Mutation(
        guard="watchlists: only lists",
        file=LIST,
        old="        if not isinstance(value, list):\n",
        new="        if False:\n",
        argv=test(HERE, "test_watchlist_that_is_no_list_of_user_ids_is_an_error_and_the_user_is_signed_in"),
    ),
    Mutation(
        guard="watchlists: only ids of users",
        file=LIST,
        old="user_key(self._app_id, user_id_of(each))",
        new="user_key(self._app_id, str(each))",
        argv=test(HERE, "test_watchlist_that_is_no_list_of_user_ids_is_an_error_and_the_user_is_signed_in"),
    ),
    Mutation(
        guard="watchlists: ids that fit into a channel",
        file=LIST,
        old="            channel_name(key)\n",
        new="            pass\n",
        argv=test(HERE, "test_watchlist_that_is_no_list_of_user_ids_is_an_error_and_the_user_is_signed_in"),
    ),
    Mutation(
        guard="watchlists: a user without a place is signed in",
        file=LIST,
        old="except (InvalidChannel, LimitExceeded) as error:",
        new="except LimitExceeded as error:",
        argv=test(HERE, "test_user_who_has_no_place_in_a_roster_is_signed_in_and_told"),
    ),
    Mutation(
        guard="watchlists: an error that passes ends the connection",
        file=LIST,
        old="            if error.code in PASSING:\n",
        new="            if False:\n",
        argv=test(HERE, "test_failure_that_passes_ends_the_connection_which_then_signs_in_again"),
    ),
    Mutation(
        guard="watchlists: apps have users of their own",
        file=WATCHED,
        old='return f"{app_id} {user}"',
        new='return f"app {user}"',
        argv=test(HERE, "test_users_of_another_app_are_others"),
    ),
    Mutation(
        guard="watchlists: a further sign-in replaces the list",
        file=LIST,
        old="        self.stop()\n",
        new="",
        argv=test(HERE, "test_watchers_and_users_that_have_gone_leave_nothing"),
    ),
    Mutation(
        guard="watchlists: a client that has gone watches nobody",
        file=CLIENT,
        old="            self._watchlist.stop()\n",
        new="            pass\n",
        argv=test(HERE, "test_watchers_and_users_that_have_gone_leave_nothing"),
    ),
    Mutation(
        guard="watchlists: users of a node are bounded",
        file=WATCHED,
        old="        if len(self._users) + len(new) > self._users_max:\n",
        new="        if False:\n",
        argv=test(UNIT, "test_node_watches_a_limited_number_of_users"),
    ),
    Mutation(
        guard="watchlists: lists of a node are bounded together",
        file=WATCHED,
        old="        if self._entries + len(watcher.users) > self._entries_max:\n",
        new="        if False:\n",
        argv=test(UNIT_WATCHED, "test_all_lists_together_have_a_limited_number_of_users"),
    ),
    Mutation(
        guard="watchlists: lists that have gone leave their place",
        file=WATCHED,
        old="                self._entries -= 1\n",
        new="",
        argv=test(UNIT_WATCHED, "test_all_lists_together_have_a_limited_number_of_users"),
    ),
    # -- what a client is told
    Mutation(
        guard="watchlists: one event at first",
        file=WATCHED,
        old="            elif not watcher.unread:\n",
        new="            else:\n",
        argv=test(UNIT_WATCHED, "test_client_is_told_in_one_event_when_all_of_its_users_are_known"),
    ),
    Mutation(
        guard="watchlists: only what a client does not know",
        file=WATCHED,
        old="if is_online and not known >> place & 1:",
        new="if is_online:",
        argv=test(UNIT_WATCHED, "test_changes_at_one_moment_are_one_event_and_those_that_cancel_each_other_none"),
    ),
    Mutation(
        guard="watchlists: a client that fails stops no other",
        file=USERS,
        old="        except Exception:  # the others must receive theirs\n",
        new="        except ZeroDivisionError:\n",
        argv=test(UNIT, "test_client_that_fails_does_not_keep_others_from_their_events"),
    ),
    Mutation(
        guard="watchlists: the last client that was told is not kept",
        file=USERS,
        old="        watcher, event = found\n",
        new="        self.last = watcher, event = found\n",
        argv=test(UNIT, "test_client_that_has_gone_is_not_kept"),
    ),
    # -- who is online
    Mutation(
        guard="watchlists: a page that reloads makes no event",
        file=USERS,
        old='            if change.kind == "-":\n                self._read_late(key)\n',
        new='            if change.kind == "-":\n                self._read_last(key)\n',
        argv=test(UNIT, "test_time_of_a_user_who_leaves_again_begins_again"),
    ),
    Mutation(
        guard="watchlists: time of a user who is back",
        file=USERS,
        old="                self._end_timer(key)\n                self._read(key)\n",
        new="                self._read(key)\n",
        argv=test(UNIT, "test_time_of_a_user_who_leaves_again_begins_again"),
    ),
    Mutation(
        guard="watchlists: a later notice counts",
        file=USERS,
        old="        if key not in self._timers and key not in self._to_read:  # else",
        new="        if key not in self._to_read:  # else",
        argv=test(UNIT, "test_read_that_is_older_than_a_notice_does_not_end_a_user"),
    ),
    Mutation(
        guard="watchlists: time for others while a page is noted",
        file=USERS,
        old="            if marked >= MARKED:\n",
        new="            if False:\n",
        argv=test(UNIT, "test_notice_that_comes_while_a_page_is_noted_counts"),
    ),
    Mutation(
        guard="watchlists: a notice that comes while a page is noted",
        file=USERS,
        old="        if key not in self._timers and key not in self._to_read:  # else",
        new="        if key not in self._timers:  # else",
        argv=test(UNIT, "test_notice_that_comes_while_a_page_is_noted_counts"),
    ),
    Mutation(
        guard="watchlists: users that redis may have lost",
        file=USERS,
        old="            if is_last:\n",
        new="            if True:\n",
        argv=test(UNIT, "test_users_who_are_missing_after_an_interruption_stay_online_for_a_while"),
    ),
    Mutation(
        guard="watchlists: grace after an interruption",
        file=USERS,
        old="max(loop.time() + self._late_s, self._grace_until_s)",
        new="loop.time() + self._late_s",
        argv=test(UNIT, "test_users_who_are_missing_after_an_interruption_stay_online_for_a_while"),
    ),
    Mutation(
        guard="watchlists: grace of those who have just left",
        file=USERS,
        old="        for key in list(self._timers):\n            self._read_late(key)\n",
        new="",
        argv=test(UNIT, "test_interruption_gives_a_user_who_has_left_more_time"),
    ),
    Mutation(
        guard="watchlists: true state after an interruption",
        file=USERS,
        old="        self._read_all_in(AFTERMATH_S)\n        self._read_all()\n",
        new="        self._read_all_in(AFTERMATH_S)\n",
        argv=test(UNIT, "test_node_that_missed_notices_tells_the_true_state"),
    ),
    Mutation(
        guard="watchlists: true state after a lost notice",
        file=USERS,
        old="        self._read_all()\n        self._read_all_in(AGAIN_S)\n",
        new="        self._read_all_in(AGAIN_S)\n",
        argv=test(UNIT, "test_lost_notice_is_noticed_without_an_interruption"),
    ),
    Mutation(
        guard="watchlists: a failed read is repeated",
        file=USERS,
        old="            self._on_failure(error, keys)\n",
        new="            pass\n",
        argv=test(UNIT, "test_list_that_comes_while_redis_does_not_answer_is_told_later"),
    ),
    Mutation(
        guard="watchlists: a failed subscription is repeated",
        file=USERS,
        old="            self._on_failure(error, [key])\n",
        new="            pass\n",
        argv=test(UNIT, "test_list_that_comes_while_redis_does_not_answer_is_told_later"),
    ),
    Mutation(
        guard="watchlists: a subscription that failed in an unknown way",
        file=USERS,
        old="        except Exception as error:  # also those that nobody expects",
        new="        except BrokerUnavailable as error:  # ",
        argv=test(UNIT, "test_user_is_listened_to_also_after_an_error_that_nobody_expects"),
    ),
    Mutation(
        guard="watchlists: a page that failed in an unknown way",
        file=USERS,
        old="            self._on_failure(error, to_read)\n",
        new="            pass\n",
        argv=test(UNIT, "test_page_is_read_again_after_an_answer_that_nobody_expects"),
    ),
    Mutation(
        guard="watchlists: the users of another redis are read",
        file=USERS,
        old="            if len(keys) > 1:  # they",
        new="            if False:  # they",
        argv=test(UNIT, "test_users_of_a_redis_that_is_unavailable_keep_no_others_from_being_known"),
    ),
    Mutation(
        guard="watchlists: no client waits without an end for users that are not known",
        file=USERS,
        old="        self._watched.begin(watcher)\n",
        new="",
        argv=test(UNIT, "test_users_of_a_redis_that_is_unavailable_keep_no_others_from_being_known"),
    ),
    Mutation(
        guard="watchlists: a client that has gone is not waited for",
        file=USERS,
        old="self._begins.pop(watcher, None)",
        new="self._begins.get(watcher)",
        argv=test(UNIT, "test_client_that_has_gone_does_not_begin"),
    ),
    Mutation(
        guard="watchlists: nobody watches any more when the node listens",
        file=USERS,
        old="        if key in self._watched:\n            self._listened.add(key)\n",
        new="        if True:\n            self._listened.add(key)\n",
        argv=test(UNIT, "test_user_whose_last_watcher_goes_before_the_node_listens_is_not_listened_to"),
    ),
    Mutation(
        guard="watchlists: the last watcher ends the subscription",
        file=USERS,
        old="                self._listened.discard(key)\n                self.topics.unlisten(key)\n",
        new="                self._listened.discard(key)\n",
        argv=test(HERE, "test_watchers_and_users_that_have_gone_leave_nothing"),
    ),
)
