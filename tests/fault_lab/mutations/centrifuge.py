"""Guards of the Centrifuge protocol, and of the parts below it: positions without a tag, changes of each connection."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["CENTRIFUGE_MUTATIONS"]

HERE = "tests/cluster/test_centrifuge.py"
RECOVERY = "tests/cluster/test_centrifuge_recovery.py"
SERVER_SIDE = "tests/cluster/test_centrifuge_server_side.py"
CLIENT = "gateway/http/protocols/centrifuge/client.py"
SOCKET = "gateway/http/protocols/centrifuge/websocket.py"
HISTORY = "tests/contract/test_history.py"
EMULATED = "gateway/http/protocols/centrifuge/emulated.py"
EMULATION = "tests/cluster/test_centrifuge_emulation.py"
API = "tests/cluster/test_centrifuge_api.py"
IMPORT = "tests/unit/config/test_centrifugo.py"
INFO = "tests/cluster/test_centrifuge_info.py"

CENTRIFUGE_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="import: user-limited channels stay closed to others",
        file="gateway/config/importers/centrifugo.py",
        old="    if is_limited:\n",
        new="    if False:\n",
        argv=test(IMPORT, "test_user_limited_channels_do_not_open_to_others"),
    ),
    Mutation(
        guard="centrifuge: connect comes first",
        file=CLIENT,
        old='            raise InvalidMessage("connect comes first, and once")\n',
        new="            pass\n",
        argv=test(HERE, "test_frame_that_is_no_command_here_closes_the_connection"),
    ),
    Mutation(
        guard="centrifuge: nothing before the reply to connect",
        file=CLIENT,
        old="return self._is_authenticated and isinstance(channel, str)",
        new="return isinstance(channel, str)",
        argv=test(SERVER_SIDE, "test_nothing_comes_before_the_reply_to_connect"),
    ),
    Mutation(
        guard="centrifuge: pings wait for connect",
        file=SOCKET,
        old="        if self._client.has_answered:\n            self.ping_frame",
        new="        if True:\n            self.ping_frame",
        argv=test(SERVER_SIDE, "test_nothing_comes_before_the_reply_to_connect"),
    ),
    Mutation(
        guard="centrifuge: a failed connect ends the connection at once",
        file=CLIENT,
        old="            self._connection.close(_CLOSE_CODES.get(text, CloseCode.BAD_TOKEN)",
        new="            asyncio.get_running_loop().call_soon(self._connection.close, CloseCode.BAD_TOKEN",
        argv=test(HERE, "test_commands_after_a_connect_that_failed_have_no_effect"),
    ),
    Mutation(
        guard="centrifuge: a token where one is required",
        file=CLIENT,
        old="if self._endpoint.registry.requires_identity and self._connection.identity is None:",
        new="if False:",
        argv=test(SERVER_SIDE, "test_client_without_a_token_is_refused_where_one_is_required"),
    ),
    Mutation(
        guard="centrifuge: pings count",
        file=CLIENT,
        old="""            if self._endpoint.registry.admits(self._connection, counted, size):
                self._tell([_reply(command.id, "ping", {})])""",
        new="""            self._tell([_reply(command.id, "ping", {})])""",
        argv=test(HERE, "test_what_no_service_takes_counts_too"),
    ),
    Mutation(
        guard="centrifuge: empty frames count",
        file=SOCKET,
        old="        if is_empty:\n            self._count_frame()\n",
        new="",
        argv=test(HERE, "test_what_no_service_takes_counts_too"),
    ),
    Mutation(
        guard="centrifuge: unasked pongs count",
        file=SOCKET,
        old="            self._is_pong_due = False\n        else:\n            self._count_frame()\n",
        new="            self._is_pong_due = False\n",
        argv=test(HERE, "test_ping_is_an_empty_reply_and_its_pong_an_empty_command"),
    ),
    Mutation(
        guard="centrifuge: bad parameters count",
        file=CLIENT,
        old="                registry.refuse(self._connection, error, counted)\n",
        new='                self._tell([_reply(command.id, "error", codes.error_of(error.code))])\n',
        argv=test(HERE, "test_command_with_bad_parameters_gets_an_error"),
    ),
    Mutation(
        guard="centrifuge: stale connections",
        file=SOCKET,
        old="        if not self._client.has_begun:\n",
        new="        if False:\n",
        argv=test(HERE, "test_client_that_does_not_connect_is_stale"),
    ),
    Mutation(
        guard="centrifuge: an object `channels` is about permissions",
        file=CLIENT,
        old="*(listed if isinstance(listed, list) else ())",
        new="*(listed or ())",
        argv=test(SERVER_SIDE, "test_token_names_channels_that_the_server_subscribes_to"),
    ),
    Mutation(
        guard="centrifuge: one subscription of a channel",
        file=CLIENT,
        old="return grants is not None and grants.get(channel_key(PUBSUB, channel)) is SERVER_SIDE",
        new="return False",
        argv=test(RECOVERY, "test_second_subscription_is_refused"),
    ),
    Mutation(
        guard="centrifuge: reply before pushes",
        file="services/pubsub/subscribing.py",
        old="                if connection.frontend is None:\n",
        new="                if True:\n",
        argv=test(RECOVERY, "test_reply_comes_before_what_its_channel_receives"),
    ),
    Mutation(
        guard="centrifuge: rejects what is not recovered",
        file=CLIENT,
        old="                self._endpoint.registry[PUBSUB].cut_subscription(self._connection, call.channel)\n",
        new="",
        argv=test(RECOVERY, "test_recovery_by_epoch_and_offset_or_by_offset_alone"),
    ),
    Mutation(
        guard="centrifuge: channels of pub/sub only",
        file="gateway/delivery/batches.py",
        old="if not connections or not dialect.serves(service):",
        new="if not connections:",
        argv=test(HERE, "test_channels_of_other_services_are_not_heard"),
    ),
    Mutation(
        guard="centrifuge: names of channels are texts",
        file=CLIENT,
        old="return self._is_authenticated and isinstance(channel, str)",
        new="return self._is_authenticated",
        argv=test(SERVER_SIDE, "test_orders_for_channels_whose_names_are_no_texts_do_not_reach_such_clients"),
    ),
    Mutation(
        guard="centrifuge: a gap ends the subscription",
        file="gateway/delivery/fan_out.py",
        old="                    self.end_at_gap(connection, key)\n",
        new="                    pass\n",
        argv=test(RECOVERY, "test_subscription_ends_at_a_gap_and_the_next_one_says_so"),
    ),
    Mutation(
        guard="centrifuge: a gap of the server's subscription",
        file="gateway/sdk/notices.py",
        old="if service is None or service.is_server_side(connection, channel_of(channel)):",
        new="if service is None:",
        argv=test(RECOVERY, "test_connection_ends_at_a_gap_of_a_subscription_by_the_server"),
    ),
    Mutation(
        guard="centrifuge: no own joins",
        file="gateway/delivery/batches.py",
        old="others = Selector(not_connection=event.change.connection_id)",
        new="others = None",
        argv=test("tests/unit/delivery/test_foreign.py", "test_each_connection_that_joins_or_leaves_is_told"),
    ),
    Mutation(
        guard="centrifuge: Snorky's clients hear of identities",
        file="services/pubsub/presence.py",
        old="            return None, Selector.none()\n",
        new="            pass\n",
        argv=test("tests/cluster/test_conformance.py", "test_protocol_holds_in_one_process and presence_and_notices"),
    ),
    Mutation(
        guard="centrifuge: joins that were missed",
        file="gateway/sdk/notices.py",
        old="    return write_version(write_change(notice, change_of(difference)), 0, 0)\n",
        new="    return notice\n",
        argv=test(RECOVERY, "test_joins_that_a_node_missed_are_told_by_connection"),
    ),
    Mutation(
        guard="centrifuge: sizes of messages as they were written",
        file="services/pubsub/publishing.py",
        old="self._demand_publish(request, channel, message, once)",
        new="self._demand_publish(request, channel, getattr(message, 'value', message), once)",
        argv=test("tests/unit/http/protocols/test_centrifuge.py", "test_size_of_a_message_is_that_of_its_bytes"),
    ),
    Mutation(
        guard="centrifuge: line breaks",  # the rest of a publication would be read as another message
        file="gateway/http/protocols/centrifuge/forms.py",
        old="            payload = one_line(payload)\n",
        new="            pass\n",
        argv=test("tests/unit/http/protocols/test_centrifuge.py", "test_line_breaks_in_payloads"),
    ),
    Mutation(
        guard="centrifuge: fields of a message",
        file="gateway/http/protocols/centrifuge/protobuf.py",
        old='if count > FIELDS_MAX or (field in found and kind[0] != "@"):',
        new="if False:",
        argv=test("tests/unit/http/protocols/test_centrifuge.py", "test_commands_that_are_no_commands_are_refused"),
    ),
    Mutation(
        guard="emulation: a URL may only connect and subscribe",
        file=EMULATED,
        old="elif may_only_read and command.method not in _READING:",
        new="elif False:",
        argv=test(EMULATION, "test_url_may_only_connect_and_subscribe"),
    ),
    Mutation(
        guard="emulation: links",
        file="gateway/http/protocols/centrifuge/emulation.py",
        old="            check_navigation(request, may_be_framed=False)\n",
        new="",
        argv=test(EMULATION, "test_url_may_only_connect_and_subscribe"),
    ),
    Mutation(
        guard="emulation: a fault ends the stream",
        file=EMULATED,
        old='            self.connection.close(CloseCode.INTERNAL_ERROR, "Internal error")\n',
        new="",
        argv=test(EMULATION, "test_fault_of_the_node_ends_the_stream"),
    ),
    Mutation(
        guard="emulation: waiting commands have a limit",
        file=EMULATED,
        old="if self._bytes > FRAMES_MAX_BYTES and self._frames:",
        new="if False:",
        argv=test(EMULATION, "test_commands_that_wait_are_limited_and_counted"),
    ),
    Mutation(
        guard="emulation: pongs count",
        file=EMULATED,
        old="                if command is None:  # a pong without a ping\n                    self._endpoint.registry.check_frame(self.connection)",
        new="                if command is None:\n                    pass",
        argv=test(EMULATION, "test_requests_of_a_client_are_limited"),
    ),
    Mutation(
        guard="emulation: empty requests count",
        file=EMULATED,
        old="            if not count:\n                self._endpoint.registry.check_frame(self.connection)\n",
        new="",
        argv=test(EMULATION, "test_requests_of_a_client_are_limited"),
    ),
    Mutation(
        guard="emulation: the session is a secret",
        file=EMULATED,
        old="if not hmac.compare_digest(secret.encode(), self._secret.encode()):",
        new="if False:",
        argv=test(EMULATION, "test_who_does_not_know_the_session_cannot_use_it"),
    ),
    Mutation(
        guard="emulation: form of a session",
        file="gateway/http/protocols/centrifuge/emulation.py",
        old="if parts is None or parts[1] != node_id:",
        new="if parts is None:",
        argv=test(EMULATION, "test_who_does_not_know_the_session_cannot_use_it"),
    ),
    Mutation(
        guard="centrifuge: recovered messages in the reply to connect",
        file=CLIENT,
        old="            if self._subs_bytes > self._most_bytes:",
        new="            if False:",
        argv=test(SERVER_SIDE, "test_recovered_messages_of_all_subscriptions_fit_the_queue"),
    ),
    Mutation(
        guard="centrifuge: a personal channel has a valid name",
        file=CLIENT,
        old="filter(_is_channel, (personal, *named))",
        new="(*filter(None, (personal,)), *filter(_is_channel, named))",
        argv=test(SERVER_SIDE, "test_identity_that_is_too_long_for_a_personal_channel_has_none"),
    ),
    Mutation(
        guard="centrifuge: stored subscriptions recover",
        file="gateway/sdk/server_subscriptions.py",
        old="            recover = frontend.recovers_from(channel_of(wanted.channel)) or True\n",
        new="            pass\n",
        argv=test(SERVER_SIDE, "test_stored_subscriptions_recover_from_where_the_client_was"),
    ),
    Mutation(
        guard="conn_info: its size",
        file="gateway/http/protocols/centrifuge/rendering.py",
        old="    if info is not None and json_size(info) > INFO_MAX_BYTES:\n",
        new="    if False:\n",
        argv=test(
            "tests/unit/http/protocols/test_centrifuge.py", "test_info_of_a_client_is_any_strict_json_up_to_a_size"
        ),
    ),
    Mutation(
        guard="conn_info: a later token counts",
        file="gateway/http/protocols/centrifuge/description.py",
        old="        if info is known[0]:\n",
        new="        if known[0] is not None:\n",
        argv=test(INFO, "test_later_joins_have_the_info_of_a_later_token"),
    ),
    Mutation(
        guard="conn_info: not for clients of Snorky's own protocol",
        file="services/pubsub/presence.py",
        old="            has_data = request.connection.frontend is not None",
        new="            has_data = True",
        argv=test(INFO, "test_clients_of_snorkys_own_protocol_notice_nothing"),
    ),
    Mutation(
        guard="conn_info: subscriptions without terms have it",
        file="services/pubsub/presence.py",
        old="    terms = terms or SubscribeTerms.of(connection.frontend, channel)\n",
        new="    terms = terms or SubscribeTerms()\n",
        argv=test(INFO, "test_subscriptions_by_the_server_have_it_too"),
    ),
    Mutation(
        guard="rosters: size of the data with a leave",
        file="gateway/presence/roster_view.py",
        old='    if kind == "-" and data is not None and json_size(data) > LEFT_DATA_MAX_BYTES:\n',
        new="    if False:\n",
        argv=test("tests/unit/presence/test_ownership.py", "test_leaves_have_the_data_of_their_entries_unless"),
    ),
    Mutation(
        guard="rosters: data of a missed leave",
        file="gateway/presence/roster_view.py",
        old="member.entry, data=data)\n",
        new="member.entry)\n",
        argv=test("tests/unit/presence/test_roster_view.py", "test_leave_that_was_missed_has_the_data_of_the_entry"),
    ),
    Mutation(
        guard="pages of connections: size of their data",
        file="services/pubsub/clients.py",
        old="        if page and size > PAGE_DATA_MAX_BYTES:\n",
        new="        if False:\n",
        argv=test("tests/unit/services/test_pubsub_clients.py", "test_pages_are_in_the_order"),
    ),
    Mutation(
        guard="pages of connections: depth of their data",
        file="services/pubsub/clients.py",
        old="json_size([[[[[[data]]]]]])",
        new="json_size(data)",
        argv=test("tests/unit/services/test_pubsub_clients.py", "test_data_that_nest_too_deeply"),
    ),
    Mutation(
        guard="server API: its key",
        file="gateway/http/backend/door.py",
        old='        presented = request.headers.get("X-Backend-Key", "") if key is None else key\n',
        new='        presented = request.headers.get("X-Backend-Key", "") if key is None else "a-key-of-a-backend-0123456789abcdef"\n',
        argv=test(API, "test_only_a_key_opens_it"),
    ),
    Mutation(
        guard="server API: services of a key",
        file="gateway/http/backend/routes.py",
        old="            if not self._private.permits(sender.key_name, envelope.service):\n",
        new="            if False:\n",
        argv=test(API, "test_key_of_one_service_opens_no_other"),
    ),
    Mutation(
        guard="history: epoch of a position without a tag",
        file="gateway/redis/history/lua/locate.lua",
        old="if not epoch or (ARGV[1] ~= '' and ARGV[1] ~= epoch) then",
        new="if not epoch then",
        argv=test(HISTORY, "test_position_without_its_tag_is_found_while_it_can_be_read_from and valkey"),
    ),
    Mutation(
        guard="history: a position that can be read from",
        file="gateway/redis/history/lua/locate.lua",
        old="local tag = offset == tonumber(state[2]) and state[3]",
        new="local tag = state[3]",
        argv=test(HISTORY, "test_position_without_its_tag_is_found_while_it_can_be_read_from and valkey"),
    ),
    Mutation(
        guard="history: an end that Redis refuses",
        file="gateway/redis/history/store.py",
        old='        if order == "newest" and beyond == 0:  # an end that Redis refuses\n            limit, beyond = 0, None\n',
        new="",
        argv=test(HISTORY, "test_pages_are_read_from_both_ends_and_from_an_offset and valkey"),
    ),
    Mutation(
        guard="centrifuge: nothing was missed on a channel without a history",
        file="services/pubsub/subscribing.py",
        old="        if since == BEGINNING and not recovery.position.offset:",
        new="        if False:",
        argv=test("tests/cluster/test_centrifuge_recovery.py", "nobody_has_used"),
    ),
)
