"""LogQueue: logging never waits for a reader; lines that do not fit are counted and reported."""

import os
import threading

from snorky.gateway.logs.queue import LogQueue


def read_until(descriptor: int, wanted: bytes) -> bytes:
    found = b""
    while wanted not in found:
        piece = os.read(descriptor, 65_536)
        assert piece, found
        found += piece
    return found


def test_lines_are_written_in_order() -> None:
    reading, writing = os.pipe()
    queue = LogQueue(writing)
    for number in range(1000):
        queue.put(str(number))
    assert read_until(reading, b"\n999\n").split() == [str(number).encode() for number in range(1000)]
    assert queue.flush(5.0) and queue.dropped == 0
    os.close(reading)
    os.close(writing)


def test_a_pipe_without_a_reader_loses_lines_and_causes_no_delay() -> None:
    reading, writing = os.pipe()
    queue = LogQueue(writing, max_bytes=10_000)
    line = "x" * 99
    put = 0
    while queue.flush(0.2):  # until the pipe is full: 64 KiB
        for _ in range(50):
            queue.put(line)
        put += 50
    done = threading.Event()

    def put_many() -> None:
        for _ in range(5_000):  # 500 KB into 10,000 bytes
            queue.put(line)
        done.set()

    threading.Thread(target=put_many, daemon=True).start()
    assert done.wait(10.0), "the writer waits for a reader"
    put += 5_000
    dropped = queue.dropped
    assert dropped > 4_000
    found = b""
    while found.count(b"x" * 99 + b"\n") < put - dropped:  # the reader resumes
        found += os.read(reading, 65_536)
    queue.put("the last line")
    found += read_until(reading, b"the last line\n")
    assert f'"lines": {dropped}'.encode() in found
    assert found.count(b"x" * 99 + b"\n") == put - dropped
    os.close(reading)
    os.close(writing)


def test_a_closed_reader_is_counted_and_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    queue = LogQueue(writing)
    for _ in range(3):
        queue.put("a line")
        assert queue.flush(5.0)
    assert queue.dropped == 3
    os.close(writing)


def test_a_pipe_that_does_not_block_is_waited_for_in_the_background() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    queue = LogQueue(writing)
    for number in range(2_000):
        queue.put(f"{number:0100}")
    assert len(read_until(reading, f"{1999:0100}\n".encode())) == 2_000 * 101
    assert queue.flush(5.0) and queue.dropped == 0
    os.close(reading)
    os.close(writing)


def test_a_character_that_is_no_text_is_written_escaped() -> None:
    reading, writing = os.pipe()
    LogQueue(writing).put("bad \ud800 good")
    assert read_until(reading, b"\n") == b"bad \\ud800 good\n"
    os.close(reading)
    os.close(writing)
