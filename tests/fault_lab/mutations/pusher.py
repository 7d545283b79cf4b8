"""Guards of Pusher's protocol on a WebSocket, and of the parts below it: terms, relayed and addressed publications."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["PUSHER_MUTATIONS"]

HERE = "tests/cluster/test_pusher.py"
APPS = "tests/cluster/test_pusher_apps.py"
CHANNELS = "tests/cluster/test_pusher_channels.py"
PRESENCE = "tests/cluster/test_pusher_presence.py"
USERS = "tests/cluster/test_pusher_users.py"
TO_SOME = "tests/cluster/test_publications_to_some.py"
UNIT = "tests/unit/http/protocols/pusher"
CONFIG_TEST = "tests/unit/config/test_pusher.py"
CLIENT = "gateway/http/protocols/pusher/client.py"
CODES = "gateway/http/protocols/pusher/codes.py"
EVENTS = "gateway/http/protocols/pusher/events.py"
NAMES = "gateway/http/protocols/pusher/names.py"
RENDERING = "gateway/http/protocols/pusher/rendering.py"
USER = "gateway/http/protocols/pusher/users/user_data.py"
SOCKET = "gateway/http/protocols/pusher/websocket.py"
CONFIG = "gateway/config/pusher.py"
PUBLISHING = "services/pubsub/publishing.py"
REPLIES = "services/pubsub/replies.py"
SUBSCRIBING = "services/pubsub/subscribing.py"

PUSHER_MUTATIONS: tuple[Mutation, ...] = (
    # -- signatures and users
    Mutation(
        guard="pusher: signature of a channel",
        file=CLIENT,
        old='        if not is_signed(self._app, signed, data.get("auth")):\n',
        new="        if False:\n",
        argv=test(HERE, "test_only_the_signature_of_this_channel_and_connection_is_accepted"),
    ),
    Mutation(
        guard="pusher: channel_data is signed",
        file=CLIENT,
        old='            signed = f"{signed}:{described}"\n',
        new="            pass\n",
        argv=test(HERE, "test_signature_of_a_private_channel_says_nothing_about_channel_data"),
    ),
    Mutation(
        guard="pusher: signature of a sign-in",
        file=CLIENT,
        old='if not isinstance(text, str) or not is_signed(self._app, signed, data.get("auth")):',
        new="if not isinstance(text, str):",
        argv=test(USERS, "test_signature_of_another_text_or_connection_ends_the_connection"),
    ),
    Mutation(
        guard="pusher: a user's channel is not for other users",
        file=CLIENT,
        old="if self._user is None or kind.user != connection.identity:",
        new="if self._user is None:",
        argv=test(USERS, "test_channel_of_a_user_is_open_to_that_user_alone"),
    ),
    Mutation(
        guard="pusher: a user's channel needs a sign-in",
        file=CLIENT,
        old="if self._user is None or kind.user != connection.identity:",
        new="if kind.user != connection.identity:",
        argv=test(USERS, "test_channel_of_a_user_is_open_to_that_user_alone"),
    ),
    Mutation(
        guard="pusher: one sign-in at a time",
        file=CLIENT,
        old="if self._task is None or self._task.done():",
        new="if True:",
        argv=test(USERS, "test_second_sign_in_does_not_change_who_a_client_is"),
    ),
    Mutation(
        guard="pusher: public channels where an identity is required",
        file=CLIENT,
        old="if self._endpoint.registry.requires_identity and connection.identity is None:",
        new="if False:",
        argv=test(USERS, "test_required_identity_is_that_of_a_signature_or_a_user"),
    ),
    Mutation(
        guard="pusher: no deadline for an identity",
        file=CLIENT,
        old="    authenticates = True ",
        new="    authenticates = False ",
        argv=test(USERS, "test_connection_without_an_identity_is_not_ended_although_others_are"),
    ),
    Mutation(
        guard="pusher: numbers as user ids",
        file=USER,
        old="identity_text(str(value) if is_number else value)",
        new="identity_text(value)",
        argv=test(PRESENCE, "test_number_as_a_user_id_is_its_text"),
    ),
    Mutation(
        guard="pusher: a flag is no user id",
        file=USER,
        old="isinstance(value, int) and not isinstance(value, bool)",
        new="isinstance(value, int)",
        argv=test(PRESENCE, "test_member_without_a_user_id_is_refused_also_if_it_is_signed"),
    ),
    Mutation(
        guard="pusher: no orders of the backend",
        file=CLIENT,
        old='not ask for."""\n        return False\n',
        new='not ask for."""\n        return True\n',
        argv=test(USERS, "test_orders_to_subscribe_do_nothing_to_these_clients"),
    ),
    # -- client events
    Mutation(
        guard="pusher: kinds of channels with client events",
        file=CLIENT,
        old="if not (self._app.client_events and kind.has_client_events):",
        new="if not self._app.client_events:",
        argv=test(CHANNELS, "test_client_event_is_refused_on_public_and_encrypted_channels"),
    ),
    Mutation(
        guard="pusher: apps without client events",
        file=CLIENT,
        old="if not (self._app.client_events and kind.has_client_events):",
        new="if not kind.has_client_events:",
        argv=test(CHANNELS, "test_app_without_client_events_refuses_them"),
    ),
    Mutation(
        guard="pusher: client events of subscribers",
        file=CLIENT,
        old="if not self._is_subscribed(channel) or (kind.is_presence and channel not in self._members):",
        new="if False:",
        argv=test(CHANNELS, "test_client_event_is_refused_without_a_subscription"),
    ),
    Mutation(
        guard="pusher: rate of client events",
        file=CLIENT,
        old="        if not self._has_turn():\n",
        new="        if False:\n",
        argv=test(CHANNELS, "test_ten_client_events_a_second_are_sent_and_others_refused"),
    ),
    Mutation(
        guard="pusher: user of a client event",
        file=CLIENT,
        old='            call_id: Json = ["subscribe", channel, terms.member]\n',
        new='            call_id: Json = ["subscribe", channel, terms.member]\n            self._members[channel] = str(terms.member)\n',
        argv=test(PRESENCE, "test_second_subscription_does_not_change_who_a_client_is"),
    ),
    Mutation(
        guard="relay: not to oneself",
        file=PUBLISHING,
        old="others = Selector(not_connection=request.connection.id)",
        new="others = Selector()",
        argv=test(CHANNELS, "test_client_event_reaches_the_others_on_all_nodes_as_it_was_sent"),
    ),
    Mutation(
        guard="relay: not kept",
        file=PUBLISHING,
        old="        return acknowledged(self.topics.publish(channel, message, to=others))\n",
        new="        return acknowledged(self.published(channel, message, to=others))\n",
        argv=test(CHANNELS, "test_client_events_are_not_kept"),
    ),
    Mutation(
        guard="relay: the right to publish",
        file=PUBLISHING,
        old="        asking = self._demand_publish(request, channel, message, None)\n",
        new="        asking = None\n",
        argv=test(CHANNELS, "test_relay_needs_the_right_to_publish"),
    ),
    # -- subscriptions
    Mutation(
        guard="pusher: an error that passes ends the connection",
        file=CLIENT,
        old="            if code in PASSING:\n",
        new="            if False:\n",
        argv=test(HERE, "test_failure_of_redis_ends_the_connection_which_then_tries_again"),
    ),
    Mutation(
        guard="pusher: rule without presence",
        file=SUBSCRIBING,
        old="            check_allowed(rule.presence)\n",
        new="",
        argv=test(HERE, "test_rule_of_the_operator_refuses_also_what_is_signed"),
    ),
    Mutation(
        guard="pusher: members by their user ids",
        file="services/pubsub/presence.py",
        old="identity=terms.member,",
        new="identity=None,",
        argv=test(PRESENCE, "test_members_are_users_with_their_info_on_all_nodes"),
    ),
    Mutation(
        guard="pusher: users, not connections",
        file=RENDERING,
        old="if kind is None or not change.is_identity or not",
        new="if kind is None or not",
        argv=test(PRESENCE, "test_users_are_added_with_their_first_connection_and_removed_with_their_last"),
    ),
    Mutation(
        guard="pusher: success before later members",
        file=SUBSCRIBING,
        old="                return await self._with_members(None, connection, channel) if terms.lists_members else None\n",
        new="                pass\n            return await self._with_members(None, connection, channel) if terms.lists_members else None\n",
        argv=test(PRESENCE, "test_user_who_joins_while_a_client_subscribes_is_listed_or_added"),
    ),
    Mutation(
        guard="pusher: a listed member is not reported as added",
        file=SUBSCRIBING,
        old="        self.topics.knows(connection, channel, census.version)\n",
        new="",
        argv=test(PRESENCE, "test_user_who_joins_while_a_client_subscribes_is_listed_or_added"),
    ),
    Mutation(
        guard="pusher: last event before later ones",
        file=SUBSCRIBING,
        old="async with self.topics.reading(connection, channel):",
        new="async with nullcontext():",
        argv=test(CHANNELS, "test_event_that_is_published_while_a_client_subscribes_comes_once"),
    ),
    Mutation(
        guard="pusher: last event comes once",
        file=REPLIES,
        old="if each.position is not None and each.position.offset <= top.offset]",
        new="if each.position is not None]",
        argv=test(CHANNELS, "test_event_that_is_published_while_a_client_subscribes_comes_once"),
    ),
    Mutation(
        guard="pusher: no miss while an event is on its way",
        file=REPLIES,
        old='compound.value["isEmpty"] = not last',
        new='compound.value["isEmpty"] = not earlier',
        argv=test(CHANNELS, "test_event_that_is_published_while_a_client_subscribes_comes_once"),
    ),
    Mutation(
        guard="pusher: only cache channels replay",
        file=CLIENT,
        old="        if not kind_of(channel).is_cache:\n            return succeeded\n",
        new="",
        argv=test(CHANNELS, "test_other_channels_replay_nothing_and_miss_nothing"),
    ),
    # -- names, events, codes, the handshake
    Mutation(
        guard="pusher: prefix of cache channels",
        file=NAMES,
        old='name.startswith("cache-", len(prefix))',
        new='"cache-" in name',
        argv=test(UNIT, "test_rules_and_kinds_agree_about_every_name"),
    ),
    Mutation(
        guard="pusher: events of the server are not published",
        file=EVENTS,
        old=" or kept.event.startswith(RESERVED):",
        new=":",
        argv=test(UNIT, "test_publication_cannot_pass_for_an_event_of_the_server"),
    ),
    Mutation(
        guard="pusher: events have names",
        file=CLIENT,
        old='name if prefix == "pusher" else ""',
        new="name or prefix",
        argv=test(HERE, "test_frame_that_is_no_event_is_answered_with_an_error"),
    ),
    Mutation(
        guard="pusher: a slow client comes back",
        file=CODES,
        old="CloseCode.SLOW_CONSUMER: ErrorCode.OVER_CAPACITY",
        new="CloseCode.SLOW_CONSUMER: ErrorCode.UNAUTHORIZED",
        argv=test(HERE, "test_client_that_does_not_read_is_told_to_come_back_later"),
    ),
    Mutation(
        guard="pusher: versions of the protocol",
        file=SOCKET,
        old="if not version.isdecimal() or len(version) > 3 or int(version) not in PROTOCOLS:",
        new="if False:",
        argv=test(HERE, "test_handshake_that_names_no_app_or_protocol_is_told_so"),
    ),
    Mutation(
        guard="pusher: escaped characters in the key of an event",
        file=EVENTS,
        old=" or _BACKSLASH in payload)",
        new=")",
        argv=test(f"{UNIT}/test_events.py", "test_key_of_an_event_may_have_escaped_characters"),
    ),
    Mutation(
        guard="pusher: channels of the app's service",
        file=RENDERING,
        old="text_frame, rendering=EventRendering(service))",
        new='text_frame, rendering=EventRendering("pubsub"))',
        argv=test(APPS, "test_apps_with_services_of_their_own_do_not_hear_each_other"),
    ),
    # -- rules of the settings
    Mutation(
        guard="pusher rules: channels of users",
        file=CONFIG,
        old='    {"match": "#server-to-user-*", **_CLOSED},\n',
        new="",
        argv=test(APPS, "test_clients_of_other_protocols_cannot_subscribe_to_what_needs_a_signature and json"),
    ),
    Mutation(
        guard="pusher rules: before a rule for all channels",
        file=CONFIG,
        old="channels = [*own[:at], *map(dict, RULES), *own[at:]]",
        new="channels = [*own, *map(dict, RULES)]",
        argv=test(CONFIG_TEST, "test_own_rules_come_first_up_to_one_that_would_open_private_channels"),
    ),
    Mutation(
        guard="pusher rules: own rules keep channels closed",
        file=CONFIG,
        old="    own = list(map(_completed, written))\n",
        new="    own = list(written)\n",
        argv=test(CONFIG_TEST, "test_own_rule_for_such_channels_keeps_what_it_does_not_write"),
    ),
    Mutation(
        guard="pusher settings: a key is of one app",
        file=CONFIG,
        old="            if other.key == app.key:\n",
        new="            if False:\n",
        argv=test(CONFIG_TEST, "test_no_two_apps_have_the_same_key"),
    ),
    Mutation(
        guard="pusher settings: secrets are hard to guess",
        file=CONFIG,
        old='            if name == "secret":\n',
        new="            if False:\n",
        argv=test(CONFIG_TEST, "test_part_that_is_wrong_is_reported_with_the_app_and_without_the_secret"),
    ),
    # -- publications for some, with a position
    Mutation(
        guard="publication: selector behind a position",
        file="gateway/protocol/publication.py",
        old="    if is_addressed:\n",
        new="    if False:\n",
        argv=test(TO_SOME, "test_all_but_the_excluded_connection_receive_it_and_positions_continue"),
    ),
    Mutation(
        guard="publication: a selector that cannot be read",
        file="gateway/protocol/publication.py",
        old="    if is_addressed:\n",
        new="    if selector:\n",
        argv=test(
            "tests/unit/protocol/test_publication.py",
            "test_selector_of_a_position_that_cannot_be_read_is_an_invalid_message",
        ),
    ),
    Mutation(
        guard="publication: the script writes the selector",
        file="gateway/redis/history/lua/publish.lua",
        old="sub(entropy, 25 + 8 * count)",
        new="''",
        argv=test(TO_SOME, "test_history_has_it_for_all_and_the_excluded_client_recovers"),
    ),
    Mutation(
        guard="publication: each of a batch has its selector",
        file="gateway/redis/history/lua/publish.lua",
        old="    rests[#rests + 1] = each\n",
        new="    rests[#rests + 1] = ''\n",
        argv=test(TO_SOME, "test_all_but_the_excluded_connection_receive_it_and_positions_continue"),
    ),
)
