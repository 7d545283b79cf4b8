"""Guards of the SockJS transports."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["SOCKJS_MUTATIONS"]

SOCKJS_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="sockjs: session before body",
        file="gateway/http/sockjs/handler.py",
        old="        if found is None:\n            return self._turn_away(request, ip, None)\n",
        new="",
        argv=test("tests/unit/http/serving/test_bodies.py", "test_a_body_for_an_unknown_session_is_not_read"),
    ),
    Mutation(
        guard="sockjs: session after body",
        file="gateway/http/sockjs/handler.py",
        old="if session is not found:",
        new="if session is None:",
        argv=test(
            "tests/unit/http/serving/test_bodies.py", "test_a_session_that_ends_while_its_body_arrives_accepts_nothing"
        ),
    ),
    Mutation(
        guard="sockjs: deadline of bodies",
        file="gateway/http/serving/bodies.py",
        old="asyncio.timeout(BODY_TIMEOUT_S)",
        new="asyncio.timeout(None)",
        argv=test("tests/unit/http/serving/test_bodies.py", "test_a_body_that_never_arrives_is_408"),
    ),
    Mutation(
        guard="sockjs: bytes under way of one address",
        file="gateway/http/serving/bodies.py",
        old="if self._reserved[site] + size > ADDRESS_MAX_BYTES:",
        new="if False:",
        argv=test("tests/unit/http/serving/test_bodies.py", "test_one_address_has_a_bound"),
    ),
    Mutation(
        guard="sockjs: requests without a message",
        file="gateway/http/sockjs/session.py",
        old="            if not messages:\n                self._count_nothing()\n",
        new="",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_requests_that_bring_no_message"),
    ),
    Mutation(
        guard="sockjs: credential",  # a client that knows a session's id can read and send
        file="gateway/http/sockjs/binding.py",
        old='            return "credential"\n',
        new='            return "admitted"\n',
        argv=test("tests/unit/http/sockjs/test_binding.py", "openers_alone"),
    ),
    Mutation(
        guard="sockjs: credential between nodes",
        file="gateway/http/sockjs/forwarding/owner.py",
        old='    return "credential" if who is None else session.binding.judge(Who.read(who))',
        new='    return "admitted"',
        argv=test("tests/unit/http/sockjs/test_binding.py", "openers_alone"),
    ),
    Mutation(
        guard="sockjs: receivers of a stopping node",  # a client whose stream is cut loses its session
        file="gateway/http/sockjs/forwarding/requester.py",
        old="        if self._is_stopping:\n",
        new="        if False:\n",
        argv=test("tests/unit/http/sockjs/test_session_nodes.py", "reaches_a_stopping_node"),
    ),
    Mutation(
        guard="sockjs: origin of the session",
        file="gateway/http/sockjs/binding.py",
        old="        if who.origin and self._opener.origin and who.origin != self._opener.origin:",
        new="        if False:",
        argv=test("tests/unit/http/sockjs/test_binding.py", "origin_that_opened"),
    ),
    Mutation(
        guard="sockjs: headers of a login",  # only cookies are checked
        file="gateway/http/sockjs/binding.py",
        old="        if name not in _VARYING and not name.startswith(_VARYING_BEGINNINGS)",
        new='        if name == "cookie"',
        argv=test(
            "tests/unit/http/sockjs/test_binding.py", "test_everything_that_a_hook_may_read_is_part_of_the_credential"
        ),
    ),
    Mutation(
        guard="sockjs: navigation",
        file="gateway/http/serving/page_check.py",
        old="    if is_navigation:",
        new="    if False:",
        argv=test("tests/unit/http/sockjs/test_binding.py", "leads_a_browser"),
    ),
    Mutation(
        guard="sockjs: Referer",
        file="gateway/http/serving/page_check.py",
        old='    if "Referer" in request.headers:\n        check_referer',
        new='    if "Referer" not in request.headers:\n        check_referer',
        argv=test(
            "tests/unit/http/sockjs/test_binding.py",
            "leads_a_browser or test_iframe_transports_of_allowed_pages_are_accepted",
        ),
    ),
    Mutation(
        guard="sockjs: guesses of ids",
        file="gateway/http/sockjs/handler.py",
        old="        if site is not None and self._brake.wait_s(site) is None:",
        new="        if False:",
        argv=test("tests/unit/http/sockjs/test_binding.py", "few_guesses"),
    ),
    Mutation(
        guard="sockjs: one session for an id",  # two requests of one user open it at one moment, on two nodes
        file="gateway/http/sockjs/session_store.py",
        old="session_id, may_take_over=False)",
        new="session_id)",
        argv=test("tests/unit/http/sockjs/test_session_nodes.py", "test_a_race_for_one_id"),
    ),
    Mutation(
        guard="sockjs: next session of an id",  # messages are answered with 204, and lost
        file="gateway/http/sockjs/session_store.py",
        old="(session is not None and not session.has_left_node)",
        new="session is not None",
        argv=test("tests/unit/http/sockjs/test_session_nodes.py", "does_not_hide"),
    ),
)
