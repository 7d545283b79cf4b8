"""Guards of foreign protocols: event streams and plain WebSockets."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["PROTOCOLS_MUTATIONS"]

SSE = "tests/cluster/test_sse.py"
ANY = "tests/cluster/test_protocols.py"

PROTOCOLS_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="protocols: no tombstones",  # a foreign client would receive a message that was never published
        file="gateway/delivery/batches.py",
        old=" for each, _ in checked if not each.is_tombstone]\n                return _foreign",
        new=" for each, _ in checked]\n                return _foreign",
        argv=test("tests/unit/delivery/test_foreign.py", "test_positions_are_rendered_and_tombstones_are_not"),
    ),
    Mutation(
        guard="protocols: whole messages are notices",
        file="gateway/delivery/batches.py",
        old="""            if selector is not None and selector.is_whole:
                return [each for value in values for each in _whole(channel, value, dialect)]
            if dialect.rendering""",
        new="            if dialect.rendering",
        argv=test("tests/unit/delivery/test_foreign.py", "test_whole_messages_of_services_are_notices"),
    ),
    Mutation(
        guard="protocols: encoders are kept",  # making one for each read costs more than a publication
        file="gateway/delivery/batches.py",
        old="@lru_cache(maxsize=ENCODERS_MAX)\n",
        new="",
        argv=test("tests/unit/delivery/test_foreign.py", "test_encoder_is_kept_for_each_channel_and_protocol"),
    ),
    Mutation(
        guard="protocols: clients that accept no orders",  # an event stream would get messages of a channel that it never named
        file="gateway/sdk/server_subscriptions.py",
        old="""        if frontend is not None and not frontend.accepts_order(channel_of(wanted.channel)):
            return False
""",
        new="",
        argv=test(SSE, "test_backend_does_not_subscribe_streams_to_further_channels"),
    ),
    Mutation(
        guard="sse: line breaks",  # the rest of a message would be read as another field
        file="gateway/http/protocols/sse/rendering.py",
        old="            payload = payload.translate(_BREAKS_TO_SPACES)\n",
        new="            pass\n",
        argv=test(ANY, "test_json_with_line_breaks_is_one_message[sse]"),
    ),
    Mutation(
        guard="sse: gap",
        file="gateway/http/protocols/sse/stream.py",
        old='if channel in self._asked.since and not data.get("recovered"):',
        new="if False:",
        argv=test(ANY, "test_client_whose_position_is_lost_is_told_so[sse]"),
    ),
    Mutation(
        guard="sse: positions of all channels",  # after a reconnect the other channels would not recover
        file="gateway/http/protocols/sse/stream.py",
        old="                self._positions[record.channel] = record.position\n",
        new="                self._positions = dict.fromkeys(self._positions, '') | {record.channel: record.position}\n",
        argv=test(SSE, "test_stream_of_several_channels_recovers_each_from_its_own_position"),
    ),
    Mutation(
        guard="sse: slow clients",
        file="gateway/http/protocols/sse/stream.py",
        old="        if self._stream.buffered_bytes() > HIGH_WATER_BYTES:\n            self.connection.pause()\n",
        new="",
        argv=test(ANY, "test_client_that_does_not_read_is_closed_and_others_are_not[sse]"),
    ),
    Mutation(
        guard="sse: a stream without a channel is refused",
        file="gateway/http/protocols/sse/stream.py",
        old="        raise next(filter(_is_temporary, refusals), refusals[0])\n",
        new="        return 0\n",
        argv=test(SSE, "test_stream_without_a_permitted_channel_is_refused"),
    ),
    Mutation(
        guard="sse: refused channels are reported",
        file="gateway/http/protocols/sse/stream.py",
        old='        self.connection.write_reply(self._rendering.notice({"message": message}) or b"")\n',
        new="",
        argv=test(SSE, "test_stream_begins_if_one_channel_is_permitted"),
    ),
    Mutation(
        guard="sse: room for the next recovery",  # a client that reads well would get gaps
        file="gateway/http/protocols/sse/stream.py",
        old="                await self._has_written.wait()\n",
        new="                break\n",
        argv=test(SSE, "test_large_recoveries_of_several_channels_are_all_delivered"),
    ),
    Mutation(
        guard="sse: leaves the node when closed",  # its subscriptions and counts would stay until the client reads
        file="gateway/http/protocols/sse/stream.py",
        old=(
            "        asyncio.get_running_loop().call_soon(self.leave_node)  # later: services must not be called in their own calls\n"
            "        self._wheel.end_soon(self)\n"
        ),
        new="",
        argv=test(ANY, "test_client_that_does_not_read_is_closed_and_others_are_not[sse]"),
    ),
    Mutation(
        guard="sse: clients that have gone",
        file="gateway/http/protocols/sse/stream.py",
        old="        if self._stream.is_gone():\n            self.abort()\n            return\n",
        new="",
        argv=test(SSE, "test_client_that_goes_away_silently_leaves_within_seconds"),
    ),
    Mutation(
        guard="sse: full channels",  # the stream would end and come back every second
        file="gateway/http/protocols/sse/stream.py",
        old='"closed", "connection_closed", "internal", "rate_limited", "unavailable"',
        new='"closed", "connection_closed", "internal", "limit_exceeded", "rate_limited", "unavailable"',
        argv=test(SSE, "full"),
    ),
    Mutation(
        guard="sse: clients that leave while they are subscribed",
        file="gateway/http/protocols/sse/stream.py",
        old='        self._refuse_all(HandshakeRefused(503, "subscribe", "closed: The client has gone"))\n        self.leave_node()\n',
        new="",
        argv=test(SSE, "test_client_that_leaves_while_it_is_subscribed_is_not_counted"),
    ),
    Mutation(
        guard="sse: temporary refusals",  # EventSource would never come back
        file="gateway/http/protocols/sse/handler.py",
        old="        if self._is_temporary(request, refused):\n",
        new="        if False:\n",
        argv=test(SSE, "test_event_source_is_asked_to_come_back_and_others_get_the_status"),
    ),
    Mutation(
        guard="sse: ids that come back in events",
        file="gateway/http/protocols/sse/request.py",
        old=" or not _ID.fullmatch(last_id)",
        new="",
        argv=test(ANY, "test_request_that_makes_no_sense_gets_a_status_and_a_sentence"),
    ),
    Mutation(
        guard="sse: end without channels",
        file="gateway/http/protocols/sse/stream.py",
        old="        if not self.connection.channels and all(each.done() for each in self._answers):\n            self.connection.close(CloseCode.OK",
        new="        if False:\n            self.connection.close(CloseCode.OK",
        argv=test(SSE, "test_stream_ends_when_its_only_channel_does"),
    ),
    Mutation(
        guard="sse: pages of other origins",
        file="gateway/http/protocols/sse/handler.py",
        old="            check_page(request, self._allowed_origins)\n",
        new="",
        argv=test(SSE, "test_pages_of_allowed_origins_may_read_and_others_may_not"),
    ),
    Mutation(
        guard="sse: ticket valid once",
        file="gateway/http/protocols/sse/handler.py",
        old="take_token(asked.ticket, secrets.token_hex())",
        new="read_token(asked.ticket)",
        argv=test(SSE, "test_ticket_opens_one_stream_on_any_node"),
    ),
    Mutation(
        guard="sse: ticket of a good token",
        file="gateway/http/protocols/sse/handler.py",
        old="            node.auth.leave(await node.auth.enter(token))\n",
        new="            pass\n",
        argv=test(SSE, "test_ticket_needs_a_good_token"),
    ),
    Mutation(
        guard="sse: token that is not accepted",
        file="gateway/http/protocols/sse/handler.py",
        old="            if entry.refusal is not None:\n                raise self._refuse_token(request, entry.refusal)\n",
        new="",
        argv=test(ANY, "test_token_that_is_not_accepted_is_refused[sse]"),
    ),
    Mutation(
        guard="sse: streams that ended do not count",
        file="gateway/http/protocols/sse/handler.py",
        old="            endpoint.admission.leave(entry.address)\n",
        new="",
        argv=test(SSE, "test_streams_count_as_connections_until_they_end"),
    ),
    Mutation(
        guard="raw: refusals end the connection",  # the client would believe that its message was published
        file="gateway/http/protocols/raw/websocket.py",
        old="            self._connection.close(code, f\"{message['code']}: {message['message']}\")\n",
        new="            pass\n",
        argv=test(ANY, "test_publication_that_no_rule_permits_is_refused[raw]"),
    ),
)
