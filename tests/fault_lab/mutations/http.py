"""Guards of the HTTP side: handshakes, WebSocket, the backend door, operations."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["HTTP_MUTATIONS"]

SITE = "tests/unit/http/serving/test_site.py"

HTTP_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="frames behind a close",
        file="gateway/http/websocket/protocol.py",
        old="                self._count_frame()\n                return None  # RFC",
        new="                return None  # RFC",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_bytes_after_our_close_frame_count_too"),
    ),
    Mutation(
        guard="a little of each in turn",
        file="gateway/http/websocket/turns.py",
        old="while line and now_s < end_s:",
        new="while line:",
        argv=test("tests/unit/http/websocket/test_turns.py", "test_other_tasks_run_between_shares"),
    ),
    Mutation(
        guard="a turn's end",
        file="gateway/http/websocket/turns.py",
        old="min(now_s + TURN_S, end_s)",
        new="end_s",
        argv=test("tests/unit/http/websocket/test_turns.py", "test_waiting_clients_have_turns_in_order"),
    ),
    Mutation(
        guard="no turns for clients that read no replies",
        file="gateway/http/websocket/protocol.py",
        old="                    if self._is_paused or self._is_full:",
        new="                    if self._is_paused:",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_clients_that_do_not_read_replies_are_not_read"),
    ),
    Mutation(
        guard="no message from clients that read no replies",
        file="gateway/http/websocket/protocol.py",
        old="len(data) <= AT_ONCE_MAX_BYTES and not self._is_full:",
        new="len(data) <= AT_ONCE_MAX_BYTES:",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_clients_that_do_not_read_replies_are_not_read"),
    ),
    Mutation(
        guard="no turns while services are busy",
        file="gateway/http/websocket/protocol.py",
        old="                    if self._is_paused or self._is_full:",
        new="                    if self._is_full:",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_messages_wait_while_services_are_busy"),
    ),
    Mutation(
        guard="a dead line behind a full buffer",
        file="gateway/http/websocket/protocol.py",
        old="(self._transport.is_reading() or self._is_full)",
        new="self._transport.is_reading()",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_a_dead_line_shows_though_its_client_is_not_read"),
    ),
    Mutation(
        guard="handshakes of an address",
        file="gateway/http/websocket/admission.py",
        old="if not self._knocks.take(site_of(ip)):",
        new="if False:",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_an_address_that_connects_too_often"),
    ),
    Mutation(
        guard="messages that never end",
        file="gateway/http/websocket/protocol.py",
        old="elif is_new and not self._connection.is_closed:",
        new="elif False:",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_a_message_that_never_ends"),
    ),
    Mutation(
        guard="readiness of a full redis",
        file="gateway/http/health.py",
        old='        reasons += ["redis_full"] * node.is_redis_full()\n',
        new="",
        argv=test("tests/cluster/test_stored_bytes.py", "test_a_full_redis_makes_nodes_unready"),
    ),
    Mutation(
        guard="readiness by what services write",
        file="gateway/http/health.py",
        old='        reasons += ["redis_refuses"] * bool(refusal := node.redis_refusal())\n',
        new='        refusal = ""\n',
        argv=test("tests/cluster/test_stored_bytes.py", "test_a_redis_that_refuses_writes and replica"),
    ),
    Mutation(
        guard="room at the other end",  # a proxy with a large buffer delivers some rarely
        file="gateway/http/websocket/peer_progress.py",
        old="bool(unacked) or probes > _PROBES_MAX",
        new="bool(unacked or transport.get_write_buffer_size())",
        argv=test(
            "tests/unit/http/websocket/test_peer_progress.py",
            "test_bytes_waiting_for_the_receivers_window_do_not_count_as_unacknowledged",
        ),
    ),
    Mutation(
        guard="acknowledged bytes as a sign of life",
        file="gateway/http/websocket/peer_progress.py",
        old="        return self._credit_s > 0",
        new="        return False",
        argv=test(
            "tests/unit/http/websocket/test_slow_clients.py",
            "test_a_client_on_a_slow_link_is_not_closed_while_it_keeps_reading",
        ),
    ),
    Mutation(
        guard="a ping to a silent client",
        file="gateway/http/websocket/protocol.py",
        old="            self._connection.write(self.ping_frame)  # if the line dies now, this stays unacknowledged",
        new="            pass",
        argv=test("tests/unit/http/websocket/test_slow_clients.py", "test_a_silent_client_is_pinged_again"),
    ),
    Mutation(
        guard="a brake on wrong keys",
        file="gateway/http/backend/door.py",
        old='self._brake.wait_s(request.remote or "")',
        new="0.0",
        argv=test("tests/unit/http/backend/test_routes.py", "test_wrong_keys_are_counted_logged_and_slowed"),
    ),
    Mutation(
        guard="a key before the body",
        file="gateway/http/backend/door.py",
        old="            return await self._refuse_key(request, ",
        new="            await request.read()\n            return await self._refuse_key(request, ",
        argv=test("tests/unit/http/backend/test_door.py", "test_a_key_is_checked_before_the_body"),
    ),
    Mutation(
        guard="services of a key",
        file="gateway/http/backend/routes.py",
        old="            if not self._private.permits(sender.key_name, envelope.service):\n",
        new="            if False:\n",
        argv=test("tests/unit/http/backend/test_door.py", "test_a_key_of_certain_services"),
    ),
    Mutation(
        guard="log of calls that a key does not permit",
        file="gateway/http/backend/routes.py",
        old="            self._registry[name].on_refused_backend(connection, envelope.message)\n",
        new="            pass\n",
        argv=test("tests/unit/http/backend/test_routes.py", "test_calls_that_a_key_does_not_permit"),
    ),
    Mutation(
        guard="services of the file with a key of the environment",
        file="gateway/config/api_keys.py",
        old="        if text is not None and not own:\n",
        new="        if text is not None:\n",
        argv=test("tests/unit/config/test_api_keys.py", "test_a_key_of_the_environment_keeps"),
    ),
    Mutation(
        guard="one key with two names",
        file="gateway/config/api_keys.py",
        old="            if known.sha256 == key.sha256:\n",
        new="            if False:\n",
        argv=test("tests/unit/config/test_api_keys.py", "test_no_key_has_two_names"),
    ),
    Mutation(
        guard="services of keys that are null",
        file="gateway/config/api_keys.py",
        old='    if "services" not in parts:',
        new="    if services is None:",
        argv=test("tests/unit/config/test_api_keys.py", "test_services_that_are_no_list_are_refused"),
    ),
    Mutation(
        guard="known services of keys",
        file="gateway/runtime/gateway.py",
        old="        if problems := problems_of_keys(settings.private, self._private):\n",
        new="        if problems := []:\n",
        argv=test("tests/unit/config/test_api_keys.py", "test_a_node_does_not_start_with_a_key"),
    ),
    Mutation(
        guard="pages by their Host",
        file="gateway/http/backend/door.py",
        old='    return "" if all(map(_is_local, hosts)) and len(hosts) < 2 else "host"',
        new='    return ""',
        argv=test("tests/unit/http/backend/test_door.py", "test_without_a_key_no_page_gets_anything"),
    ),
    Mutation(
        guard="pages by Sec-Fetch-Site",
        file="gateway/http/backend/door.py",
        old='        return "fetch_site"',
        new="        pass",
        argv=test("tests/unit/http/backend/test_door.py", "test_without_a_key_no_page_gets_anything"),
    ),
    Mutation(
        guard="ready line with workers",
        file="gateway/http/workers/app.py",
        old="        on_ready()\n",
        new="",
        argv=test("tests/cluster/test_start_stop.py", "between and workers"),
    ),
    Mutation(
        guard="a site answers before it stops",  # a balancer may not repeat an event that it has sent
        file="gateway/http/serving/site.py",
        old="            await asyncio.sleep(_PACE_S)\n",
        new="            break\n",
        argv=test(SITE, "test_a_request_that_is_on_its_way_when_a_site_stops_is_answered"),
    ),
    Mutation(
        guard="a site's last answers end connections",
        file="gateway/http/serving/site.py",
        old='            response.headers["Connection"] = "close"',
        new="            pass",
        argv=test(SITE, "test_a_request_that_is_on_its_way_when_a_site_stops_is_answered"),
    ),
    Mutation(
        guard="pages may read a refusal",
        file="gateway/http/websocket/handler.py",
        old="        headers |= SEEN_BY_PAGES\n",
        new="",
        argv=test(SITE, "test_a_page_may_read_why_it_was_refused"),
    ),
    Mutation(
        guard="a page's error names its origin",
        file="gateway/http/websocket/handshake.py",
        old='        check_origin(origin, headers.get("Host", ""), allowed_origins)  #',
        new="        pass  #",
        argv=test(SITE, "test_a_page_may_read_why_it_was_refused"),
    ),
    Mutation(
        guard="last close code",  # the command line client reconnected indefinitely after a refused token
        file="gateway/http/outbound/watch.py",
        old="                if code in _FINAL_CODES:",
        new="                if False:",
        argv=test("tests/cluster/test_commands.py", "test_subscribe_authenticates_and_finds_the_node_by_the_settings"),
    ),
)
