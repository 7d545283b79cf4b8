"""The case groups of the Autobahn testsuite, in our own form: sent bytes and expected frames.

Groups: 1 framing, 2 pings, 3 reserved bits, 4 opcodes, 5 fragmentation, 6 UTF-8, 7 closing, 9 sizes (up to our
limit of a message). A service sends the echo, so text cases carry JSON; "non-strict": where the RFC lets a server
choose when to fail, ours fails when the message is complete.
"""

import json
from dataclasses import dataclass, field

import msgpack
import pytest

from tests.support.clients.raw_ws import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, RawClient, close_payload, frame
from tests.support.scenarios.site import on_both_loops, running_site

MSGPACK = {"Sec-WebSocket-Protocol": "snorky.msgpack"}


@dataclass(frozen=True)
class Case:
    """sent: one item per read. expected: frames before the end. code: of the close frame, None: no end."""

    sent: list[bytes]
    expected: list[tuple[int, bytes]] = field(default_factory=list)
    code: int | None = None
    is_msgpack: bool = False
    chop: int = 0  # bytes per write; 0: all


def said(text: str) -> bytes:
    return json.dumps({"service": "echo", "message": text}, ensure_ascii=False, separators=(",", ":")).encode()


def packed(data: str) -> bytes:
    return bytes(msgpack.packb({"service": "echo", "message": data}))


def cut(data: bytes, size: int, opcode: int = TEXT) -> list[bytes]:
    """Fragment one message."""
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    last = len(parts) - 1
    return [frame(opcode if not at else CONTINUATION, part, fin=at == last) for at, part in enumerate(parts)]


HELLO = said("Hello")
ECHO = (TEXT, HELLO)
CASES: dict[str, Case] = {}

# -- 1: text and binary messages of all sizes --------------------------------------------------------------------
for number, size in enumerate((0, 125, 126, 127, 128, 65_000), 1):
    for chop in (0, 997) if size == 65_000 else (0, 1):
        text = said("*" * size)
        CASES[f"1.1.{number} text {size} chop {chop}"] = Case([frame(TEXT, text)], [(TEXT, text)], chop=chop)
        data = packed("*" * size)
        CASES[f"1.2.{number} binary {size} chop {chop}"] = Case(
            [frame(BINARY, data)], [(BINARY, data)], is_msgpack=True, chop=chop
        )

# -- 2: pings and pongs ------------------------------------------------------------------------------------------
CASES |= {
    "2.1 empty ping": Case([frame(PING)], [(PONG, b"")]),
    "2.2 ping with text": Case([frame(PING, b"Hello, world!")], [(PONG, b"Hello, world!")]),
    "2.3 ping with bytes": Case(
        [frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff")], [(PONG, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff")]
    ),
    "2.4 ping of 125": Case([frame(PING, b"\xfe" * 125)], [(PONG, b"\xfe" * 125)]),
    "2.5 ping of 126": Case([frame(PING, b"\xfe" * 126)], code=1002),
    "2.6 ping of 125, chopped": Case([frame(PING, b"\xfe" * 125)], [(PONG, b"\xfe" * 125)], chop=1),
    "2.7 unasked pong": Case([frame(PONG), frame(TEXT, HELLO)], [ECHO]),
    "2.8 unasked pong with payload": Case([frame(PONG, b"x" * 125), frame(TEXT, HELLO)], [ECHO]),
    "2.9 pong, then ping": Case([frame(PONG, b"a"), frame(PING, b"b")], [(PONG, b"b")]),
    "2.10 ten pings": Case([frame(PING, b"%d" % n) for n in range(10)], [(PONG, b"%d" % n) for n in range(10)]),
    "2.11 ten pings, chopped": Case(
        [frame(PING, b"%d" % n) for n in range(10)], [(PONG, b"%d" % n) for n in range(10)], chop=1
    ),
}

# -- 3: reserved bits --------------------------------------------------------------------------------------------
for rsv in range(1, 8):
    CASES[f"3.{rsv} text with RSV {rsv}"] = Case([frame(TEXT, HELLO, rsv=rsv)], code=1002)
CASES |= {
    "3.2 after a good one": Case([frame(TEXT, HELLO), frame(TEXT, HELLO, rsv=2), frame(PING)], [ECHO], 1002),
    "3.3 after a good one, in one write": Case(
        [frame(TEXT, HELLO) + frame(TEXT, HELLO, rsv=3) + frame(PING)], [ECHO], 1002
    ),
    "3.4 chopped": Case([frame(TEXT, HELLO) + frame(TEXT, HELLO, rsv=4) + frame(PING)], [ECHO], 1002, chop=1),
    "3.6 ping": Case([frame(PING, b"Hello", rsv=6)], code=1002),
    "3.7 close": Case([frame(CLOSE, b"", rsv=7)], code=1002),
}

# -- 4: opcodes --------------------------------------------------------------------------------------------------
for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
    group = 1 if opcode < 8 else 2
    CASES[f"4.{group} opcode {opcode}"] = Case([frame(opcode)], code=1002)
    CASES[f"4.{group} opcode {opcode} with payload"] = Case([frame(opcode, b"reserved")], code=1002)
    CASES[f"4.{group} opcode {opcode} after text"] = Case(
        [frame(TEXT, HELLO), frame(opcode, b"x"), frame(PING)], [ECHO], 1002
    )
    CASES[f"4.{group} opcode {opcode} chopped"] = Case(
        [frame(TEXT, HELLO) + frame(opcode, b"x") + frame(PING)], [ECHO], 1002, chop=1
    )

# -- 5: fragmentation --------------------------------------------------------------------------------------------
A, B = HELLO[:9], HELLO[9:]
CASES |= {
    "5.1 fragmented ping": Case([frame(PING, b"a", fin=False) + frame(CONTINUATION, b"b")], code=1002),
    "5.2 fragmented pong": Case([frame(PONG, b"a", fin=False) + frame(CONTINUATION, b"b")], code=1002),
    "5.3 two fragments": Case(cut(HELLO, 9), [ECHO]),
    "5.4 two fragments in one write": Case([b"".join(cut(HELLO, 9))], [ECHO]),
    "5.5 two fragments, chopped": Case(cut(HELLO, 9), [ECHO], chop=1),
    "5.6 ping between": Case(
        [frame(TEXT, A, fin=False), frame(PING, b"p"), frame(CONTINUATION, B)], [(PONG, b"p"), ECHO]
    ),
    "5.8 ping between, chopped": Case(
        [frame(TEXT, A, fin=False) + frame(PING, b"p") + frame(CONTINUATION, B)], [(PONG, b"p"), ECHO], chop=1
    ),
    "5.9 continuation of nothing, final": Case([frame(CONTINUATION, b"x") + frame(TEXT, HELLO)], code=1002),
    "5.10 the same, alone": Case([frame(CONTINUATION, b"x"), frame(TEXT, HELLO)], code=1002),
    "5.11 the same, chopped": Case([frame(CONTINUATION, b"x") + frame(TEXT, HELLO)], code=1002, chop=1),
    "5.12 continuation of nothing, not final": Case(
        [frame(CONTINUATION, b"x", fin=False) + frame(TEXT, HELLO)], code=1002
    ),
    "5.15 continuation after a whole one": Case(
        [*cut(HELLO, 9), frame(CONTINUATION, b"x", fin=False), frame(TEXT, HELLO)], [ECHO], 1002
    ),
    "5.16 twice continuation of nothing": Case(
        [frame(CONTINUATION, b"x", fin=False), frame(TEXT, A, fin=False)], code=1002
    ),
    "5.18 text within text": Case([frame(TEXT, A, fin=False), frame(TEXT, B)], code=1002),
    "5.19 pings between five fragments": Case(
        [
            frame(TEXT, HELLO[:5], fin=False),
            frame(CONTINUATION, HELLO[5:10], fin=False) + frame(PING, b"1"),
            frame(CONTINUATION, HELLO[10:15], fin=False) + frame(PING, b"2"),
            frame(CONTINUATION, HELLO[15:20], fin=False),
            frame(CONTINUATION, HELLO[20:]),
        ],
        [(PONG, b"1"), (PONG, b"2"), ECHO],
    ),
    "empty fragments around": Case(
        [frame(TEXT, b"", fin=False), frame(CONTINUATION, HELLO, fin=False), frame(CONTINUATION, b"")], [ECHO]
    ),
}

# -- 6: UTF-8 ----------------------------------------------------------------------------------------------------
GOOD_UTF8 = {
    "6.2.1 multilingual": "Hello-µ@ßöäüàá-UTF-8!!",
    "6.5.1 Greek": "κόσμε",
    "6.6 ends of each length": "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff",
    "6.9 around surrogates": "\ud7ff\ue000",
    "6.22 noncharacters": "\ufffe\uffff\U0001fffe\U0001ffff\U0010fffe\ufdd0",
    "6.23 replacement": "\ufff9\ufffc\ufffd",
}
for name, text in GOOD_UTF8.items():
    data = said(text)
    CASES[name] = Case([frame(TEXT, data)], [(TEXT, data)])
    CASES[f"{name}, byte by byte in fragments"] = Case(cut(data, 1), [(TEXT, data)])
BAD_UTF8 = {
    "6.3.1 surrogate in the middle": b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
    "6.4.1 beyond U+10FFFF": b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited",
    "6.8.1 five bytes": b"\xf8\x88\x80\x80\x80",
    "6.8.2 six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "6.10 U+110000": b"\xf4\x90\x80\x80",
    "6.11 lone continuation": b"\x80",
    "6.12 all continuations": bytes(range(0x80, 0xC0)),
    "6.13 lone starts": b"\xc0 \xc1 \xe0 \xf0 ",
    "6.14 last byte missing": b"\xce",
    "6.14 last byte of three missing": b"\xe1\xbd",
    "6.14 last byte of four missing": b"\xf0\x9f\x98",
    "6.15 incomplete ones in a row": b"\xc0\xe0\x80\xf0\x80\x80",
    "6.16 impossible": b"\xfe\xfe\xff\xff",
    "6.17 overlong slash": b"\xc0\xaf",
    "6.18 overlong ends": b"\xc1\xbf\xe0\x9f\xbf\xf0\x8f\xbf\xbf",
    "6.19 overlong NUL": b"\xc0\x80",
    "6.20 lone surrogates": b"\xed\xad\xbf",
    "6.21 paired surrogates": b"\xed\xa0\x80\xed\xb0\x80",
}
for name, data in BAD_UTF8.items():
    CASES[name] = Case([frame(TEXT, data)], code=1007)
    CASES[f"{name}, in fragments"] = Case(cut(data, 1), code=1007)
    CASES[f"{name}, behind a good one, chopped"] = Case([frame(TEXT, HELLO) + frame(TEXT, data)], [ECHO], 1007, chop=1)

# -- 7: closing --------------------------------------------------------------------------------------------------
CASES |= {
    "7.1.1 message, close": Case([frame(TEXT, HELLO), frame(CLOSE, close_payload(1000))], [ECHO], 1000),
    "7.1.2 two closes": Case([frame(CLOSE, close_payload(1000)) * 2], code=1000),
    "7.1.3 ping behind a close": Case([frame(CLOSE, close_payload(1000)) + frame(PING)], code=1000),
    "7.1.4 text behind a close": Case([frame(CLOSE, close_payload(1000)) + frame(TEXT, HELLO)], code=1000),
    "7.1.5 close between fragments": Case(
        [frame(TEXT, A, fin=False), frame(CLOSE, close_payload(1000)), frame(CONTINUATION, B)], code=1000
    ),
    "7.1.6 large message, close": Case(
        [frame(TEXT, said("B" * 60_000)) + frame(CLOSE, close_payload(1000)) + frame(PING)],
        [(TEXT, said("B" * 60_000))],
        1000,
    ),
    "7.3.1 empty": Case([frame(CLOSE)], code=1000),
    "7.3.2 one byte": Case([frame(CLOSE, b"a")], code=1002),
    "7.3.3 code": Case([frame(CLOSE, close_payload(1000))], code=1000),
    "7.3.4 code and reason": Case([frame(CLOSE, close_payload(1000, b"Hello World!"))], code=1000),
    "7.3.5 longest reason": Case([frame(CLOSE, close_payload(1000, b"*" * 123))], code=1000),
    "7.3.6 reason too long": Case([frame(CLOSE, close_payload(1000, b"*" * 124))], code=1002),
    "7.5.1 reason is not UTF-8": Case([frame(CLOSE, close_payload(1000, b"\xce\xba\xed\xa0\x80"))], code=1007),
}
for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
    CASES[f"7.7 code {code}"] = Case([frame(CLOSE, close_payload(code))], code=code)
for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535):
    CASES[f"7.9 code {code}"] = Case([frame(CLOSE, close_payload(code))], code=1002)

# -- 9: sizes ----------------------------------------------------------------------------------------------------
OVERHEAD = len(said(""))
for size in (4096, 16_384, 65_536):
    text = said("*" * (size - OVERHEAD))
    assert len(text) == size
    CASES[f"9.1 text of {size}"] = Case([frame(TEXT, text)], [(TEXT, text)])
    for part in (64, 1024, 16_384):
        CASES[f"9.3 text of {size} in fragments of {part}"] = Case([b"".join(cut(text, part))], [(TEXT, text)])
    CASES[f"9.7 text of {size} in writes of 997"] = Case([frame(TEXT, text)], [(TEXT, text)], chop=997)
CASES |= {
    "9 a byte too many": Case([frame(TEXT, said("*" * (65_537 - OVERHEAD)))], code=1009),
    "9 a byte too many in fragments": Case([b"".join(cut(said("*" * (65_537 - OVERHEAD)), 1024))], code=1009),
    "9 16 MiB declared": Case([frame(TEXT, b"*" * 1000, length=2**24)], code=1009),
}


async def assert_case(client: RawClient, case: Case) -> None:
    data = b"".join(case.sent)
    reads = [data[at : at + case.chop] for at in range(0, len(data), case.chop)] if case.chop else case.sent
    for read in reads:
        await client.send(read)
    for expected in case.expected:
        assert await client.receive() == expected
    if case.code is not None:
        assert await client.closed() == case.code
    else:  # nothing more came, and the client is still served
        await client.send(frame(PING, b"fence"))
        assert await client.receive() == (PONG, b"fence")
        await client.send(frame(CLOSE, close_payload(1000)))
        assert await client.closed() == 1000


@on_both_loops
@pytest.mark.parametrize("group", ["1", "2", "3", "4", "5", "6", "7", "9"])
async def test_all_cases_of_a_group_end_as_the_rfc_requires(group: str) -> None:
    cases = {name: case for name, case in CASES.items() if name.startswith(group) or (group == "5" and name[0] == "e")}
    assert len(cases) >= 11
    async with running_site() as site:
        for name, case in cases.items():
            try:
                await assert_case(await site.client(MSGPACK if case.is_msgpack else None), case)
            except (AssertionError, EOFError, TimeoutError, ConnectionError) as error:
                error.add_note(f"case {name}")
                raise
