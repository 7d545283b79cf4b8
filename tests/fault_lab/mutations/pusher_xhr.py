"""Guards of Pusher's transports without a WebSocket."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["PUSHER_XHR_MUTATIONS"]

XHR = "gateway/http/protocols/pusher/xhr.py"
UNIT = "tests/unit/http/protocols/pusher/test_xhr.py"
CLUSTER = "tests/cluster/test_pusher_xhr.py"
SESSION = "gateway/http/sockjs/session.py"
STREAM = "gateway/http/serving/response_stream.py"
UNWRITTEN = "tests/unit/http/sockjs/test_unwritten_responses.py"

PUSHER_XHR_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="pusher xhr: the open frame before an end",  # without it pusher-js tries again without an end
        file=XHR,
        old="            self._is_open = True\n            drain.send(OPEN)\n",
        new="            pass\n",
        argv=test(UNIT, "test_end_before_the_opening_comes_behind_the_open_frame"),
    ),
    Mutation(
        guard="pusher xhr: characters of a response",  # events behind the last one that the client reads are lost
        file=XHR,
        old="return 1 + (len(frame) if frame.isascii() else len(frame.decode()))",
        new="return 1 + len(frame)",
        argv=test(UNIT, "test_response_ends_with_the_first_frame_after_which_clients_read_no_more"),
    ),
    Mutation(
        guard="pusher xhr: the first line of a response counts",
        file=XHR,
        old="RESPONSE_MAX_CHARS + 1 - len(XhrStreaming().prelude())",
        new="RESPONSE_MAX_CHARS",
        argv=test(CLUSTER, "test_stream_ends_with_the_frame_that_makes_the_client_end_it"),
    ),
    Mutation(
        guard="pusher xhr: key and number belong to the session's id",
        file=XHR,
        old='request.match_info[each] for each in ("key", "server", "session")',
        new='request.match_info[each] for each in ("session",)',
        argv=test(CLUSTER, "test_session_is_known_by_key_number_and_name"),
    ),
    Mutation(
        guard="pusher xhr: sessions of another kind",  # two listeners of one channel take each other's messages
        file=XHR,
        old='    kind = "pusher"\n',
        new='    kind = "sockjs"\n',
        argv=test(CLUSTER, "test_sessions_of_sockjs_on_the_same_nodes_are_others"),
    ),
    Mutation(
        guard="pusher xhr: pings are answered",
        file=XHR,
        old='            self._send(array_of(b""))\n',
        new="            pass\n",
        argv=test(UNIT, "test_empty_array_is_answered_once_and_only_to_a_receiver"),
    ),
    Mutation(
        guard="pusher xhr: pings count",
        file=XHR,
        old="        await super().receive(messages)\n",
        new="        if messages:\n            await super().receive(messages)\n",
        argv=test(UNIT, "test_empty_arrays_are_limited"),
    ),
    Mutation(
        guard="pusher xhr: a gap is no fault of the transport",
        file=XHR,
        old="        if code == CloseCode.PROTOCOL_ERROR:\n",
        new="        if False:\n",
        argv=test(UNIT, "test_client_that_aborted_a_response_may_come_back_at_once"),
    ),
    Mutation(
        guard="pusher xhr: one credential",  # else each request asks the hook again, and counts as a handshake
        file=XHR,
        old='frozenset(("protocol", "client", "version", "flash", "t", "n"))',
        new='frozenset(("t",))',
        argv=test(UNIT, "test_sending_requests_have_the_credential_of_receiving_ones"),
    ),
    Mutation(
        guard="pusher xhr: a client without an app is not connected",
        file="gateway/http/sockjs/session_store.py",
        old="elif not session.connection.is_closed and not await",
        new="elif not await",
        argv=test(CLUSTER, "test_client_without_an_app_or_protocol_is_told_so_in_one_response"),
    ),
    Mutation(
        guard="sockjs: frames between nodes in parts",  # a long queue never arrives, and the client waits
        file="gateway/http/sockjs/forwarding/remote_stream.py",
        old="PART_MAX_CHARS: Final = 131_072",
        new="PART_MAX_CHARS: Final = 1 << 30",
        argv=test(
            "tests/unit/http/sockjs/test_session_nodes.py",
            "test_all_that_was_queued_reaches_a_receiver_on_another_node and uvloop-xhr",
        ),
    ),
    Mutation(
        guard="sockjs: a receiver waits for the response before it",  # which may be lost with all that was in it
        file=SESSION,
        old="if self._drain is None or self._unwritten:",
        new="if self._drain is None:",
        argv=test(UNWRITTEN, "test_next_receiver_gets_messages_when_the_last_response_is_written"),
    ),
    Mutation(
        guard="sockjs: a response is lost after its end",
        file=SESSION,
        old="        elif drain not in self._unwritten:\n",
        new="        else:\n",
        argv=test(UNWRITTEN, "test_response_that_is_lost_after_its_end_ends_the_session"),
    ),
    Mutation(
        guard="sockjs: bound of waiting for a response",  # else a client waits for good
        file=SESSION,
        old="now_s - self._attached_s >= self._timing.unwritten_s",
        new="False",
        argv=test(UNWRITTEN, "test_response_that_is_never_confirmed_ends_the_session"),
    ),
    Mutation(
        guard="sockjs: the owner notices a dead asker",
        file="gateway/http/sockjs/forwarding/owner.py",
        old="if known[number].unheard >= UNHEARD_MAX:",
        new="if False:",
        argv=test(UNWRITTEN, "test_node_that_dies_with_a_response_ends_the_session_at_once"),
    ),
    Mutation(
        guard="sockjs: written means that the kernel has it",
        file="gateway/http/sockjs/handler.py",
        old="                await until_written(request)\n",
        new="",
        argv=test(UNWRITTEN, "test_slow_reader_confirms_a_poll_when_it_has_read"),
    ),
    Mutation(
        guard="sockjs: a buffer that was lost is not written",
        file=STREAM,
        old="    if request.protocol.writing_paused:",
        new="    if False:",
        argv=test(UNWRITTEN, "test_slow_response_that_is_cut_ends_the_session"),
    ),
    Mutation(
        guard="sockjs: the end waits for the response before it",
        file=SESSION,
        old="        if self._unwritten:\n            return  # `_resume` tells",
        new="        if False:\n            return  # `_resume` tells",
        argv=test(UNWRITTEN, "test_end_of_a_session_waits_for_the_last_response"),
    ),
    Mutation(
        guard="sockjs: nothing behind a lost response",
        file=SESSION,
        old='        self._unwritten.clear()\n        self._before_end = b""\n',
        new="        self._unwritten.clear()\n",
        argv=test(UNWRITTEN, "test_nothing_follows_a_lost_response_but_the_end"),
    ),
    Mutation(
        guard="sockjs: confirmations are repeated",  # else one that Redis has lost ends the session
        file="gateway/http/sockjs/forwarding/owner.py",
        old="        for number in finished:\n            self.on_finished(number)\n",
        new="",
        argv=test(UNWRITTEN, "test_confirmation_that_was_lost_is_repeated"),
    ),
    Mutation(
        guard="sockjs: slow readers",
        file=SESSION,
        old="return self._timing.writing_s if is_read else self._timing.disconnect_delay_s",
        new="return self._timing.disconnect_delay_s",
        argv=test(UNWRITTEN, "test_slow_reader_keeps_its_session"),
    ),
)
