"""Guards of Pusher's HTTP API: signed requests, events, counts."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["PUSHER_API_MUTATIONS"]

FOLDER = "gateway/http/protocols/pusher"
API = f"{FOLDER}/api.py"
METHODS = f"{FOLDER}/api_methods.py"
SIGNED = f"{FOLDER}/signed_requests.py"
SIGNATURES = f"{FOLDER}/signatures.py"
SURVEYS = f"{FOLDER}/surveys.py"
EVENTS = "tests/cluster/test_pusher_api.py"
REQUESTS = "tests/cluster/test_pusher_api_requests.py"
SHARING = "tests/unit/http/protocols/pusher/test_api_surveys.py"

PUSHER_API_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="pusher api: the secret signs",
        file=SIGNED,
        old="    return hmac.compare_digest(expected, given) and is_ours\n",
        new="    return is_ours\n",
        argv=test(REQUESTS, "test_request_that_is_not_signed_rightly_is_refused"),
    ),
    Mutation(
        guard="pusher api: key and version are those of the app",
        file=SIGNED,
        old="    return hmac.compare_digest(expected, given) and is_ours\n",
        new="    return hmac.compare_digest(expected, given)\n",
        argv=test(REQUESTS, "test_request_that_is_not_signed_rightly_is_refused"),
    ),
    Mutation(
        guard="pusher api: a signed text means one query",
        file=SIGNATURES,
        old='        if name in found or "&" in name or "=" in name or "&" in value:\n            return None\n',
        new="",
        argv=test(REQUESTS, "test_query_means_what_was_signed_and_nothing_else"),
    ),
    Mutation(
        guard="pusher api: names of parameters count in any letters",
        file=SIGNATURES,
        old="        name = written.lower()\n",
        new="        name = written\n",
        argv=test(REQUESTS, "test_request_is_signed_as_it_is_decoded"),
    ),
    Mutation(
        guard="pusher api: requests expire",
        file=SIGNED,
        old="        if not is_number or abs(int(written) - time.time()) > VALID_S:\n",
        new="        if not is_number:\n",
        argv=test(REQUESTS, "test_request_that_is_not_signed_rightly_is_refused"),
    ),
    Mutation(
        guard="pusher api: the body is the signed one",
        file=SIGNED,
        old="        if stated != found and (body or stated is not None):\n",
        new="        if False:\n",
        argv=test(REQUESTS, "test_request_that_is_not_signed_rightly_is_refused"),
    ),
    Mutation(
        guard="pusher api: a brake on wrong signatures",
        file=SIGNED,
        old="        await asyncio.sleep(wait_s)\n",
        new="",
        argv=test(REQUESTS, "test_wrong_signatures_are_answered_slower_and_a_right_one_at_once"),
    ),
    Mutation(
        guard="pusher api: few requests wait at the brake",
        file=SIGNED,
        old="        if wait_s is None:\n",
        new="        wait_s = wait_s or 0.0\n        if wait_s < 0:\n",
        argv=test(REQUESTS, "test_wrong_signatures_are_answered_slower_and_a_right_one_at_once"),
    ),
    Mutation(
        guard="pusher api: the connection of an unread body is closed",
        file=API,
        old="    if status in _UNREAD:\n        response.force_close()\n",
        new="",
        argv=test(REQUESTS, "test_body_of_a_refused_request_is_not_waited_for"),
    ),
    Mutation(
        guard="pusher api: a sender that goes is no fault",
        file=SIGNED,
        old="        except (web.RequestPayloadError, HandshakeRefused, ConnectionError):",
        new="        except (web.RequestPayloadError, HandshakeRefused):",
        argv=test(REQUESTS, "test_sender_that_goes_while_its_body_is_read_is_no_fault_of_the_node"),
    ),
    Mutation(
        guard="pusher api: an event of a batch that is refused stops all",
        file=METHODS,
        old='    events = [_event(call, fields, [fields.get("channel")]) for fields in batch]\n',
        new="""    events: list[_Event] = []
    for fields in batch:
        events.append(_event(call, fields, [fields.get("channel")]))
        await call.publish(events[-1:])
""",
        argv=test(EVENTS, "test_no_event_of_a_batch_is_published_if_one_is_refused"),
    ),
    Mutation(
        guard="pusher api: the id of a user fits into a channel",
        file=METHODS,
        old="    return channel_name(name)  # the same text\n",
        new="    return str(name)\n",
        argv=test(EVENTS, "test_no_event_of_a_batch_is_published_if_one_is_refused"),
    ),
    Mutation(
        guard="pusher api: the sender is left out",
        file=METHODS,
        old="    to = None if excluded is None else Selector(not_connection=excluded)\n",
        new="    to = None\n",
        argv=test(EVENTS, "test_sender_of_an_event_does_not_get_it"),
    ),
    Mutation(
        guard="pusher api: an event that is not published is no success",
        file=METHODS,
        old="            if isinstance(outcome, BaseException):\n                raise outcome\n",
        new="            pass\n",
        argv=test(EVENTS, "test_event_that_some_channels_did_not_get_is_answered_with_503"),
    ),
    Mutation(
        guard="pusher api: data is bounded",
        file=METHODS,
        old='    if len(data.encode("utf-8", "surrogatepass")) > call.request.app.data_max_bytes:\n',
        new="    if False:\n",
        argv=test(EVENTS, "test_malformed_request_is_refused"),
    ),
    Mutation(
        guard="pusher api: events of the server are not published",
        file=METHODS,
        old="    if name.startswith(RESERVED):",
        new="    if False:",
        argv=test(EVENTS, "test_malformed_request_is_refused"),
    ),
    Mutation(
        guard="pusher api: a prefix is no pattern",
        file=METHODS,
        old=" or _SPECIAL.intersection(prefix)):",
        new="):",
        argv=test(EVENTS, "test_malformed_request_is_refused"),
    ),
    Mutation(
        guard="pusher api: only names of Pusher's channels are listed",
        file=METHODS,
        old=" for name, count in listed.items() if is_channel(name)}",
        new=" for name, count in listed.items()}",
        argv=test(EVENTS, "test_channels_of_other_protocols_that_pusher_cannot_name_are_not_listed"),
    ),
    Mutation(
        guard="pusher api: callers share questions",
        file=SURVEYS,
        old="            if question.answer is None and question.error is None:\n",
        new="            if True:\n",
        argv=test(SHARING, "test_lists_are_shared_and_do_not_keep_counts_waiting"),
    ),
    Mutation(
        guard="pusher api: no answer is older than the call",
        file=SURVEYS,
        old="                if self._waiting.get(key) is question:\n",
        new="                if False:\n",
        argv=test(SHARING, "test_callers_during_a_question_share_the_next_one"),
    ),
    Mutation(
        guard="pusher api: questions are paced",
        file=SURVEYS,
        old="        await asyncio.sleep(at_s - loop.time())\n",
        new="",
        argv=test(SHARING, "test_orders_are_paced"),
    ),
    Mutation(
        guard="pusher api: a list is bounded",
        file=SURVEYS,
        old="            if len(found) >= LIST_MAX:\n                raise TooManyChannels\n",
        new="",
        argv=test(SHARING, "test_list_has_all_pages_and_a_bound"),
    ),
    Mutation(
        guard="pusher api: names fit into an order",
        file=SURVEYS,
        old="        if part and size + own > NAMES_BYTES:\n",
        new="        if False:\n",
        argv=test(SHARING, "test_names_are_divided_so_that_each_order_is_accepted"),
    ),
    Mutation(
        guard="rosters: identities are counted without the other counts",
        file="gateway/redis/directory/rosters.py",
        old="max(0, size - sum(each is not None for each in others))",
        new="size",
        argv=test("tests/contract/test_directory.py", "test_identities_of_many_rosters_are_counted"),
    ),
)
