"""Guards of the extension module, and of the writes that it leaves to transports."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["NATIVE_MUTATIONS"]

_MODULE = "gateway/connection/native/_sends.c"
_SENDS = "tests/unit/connection/native/test_sends.py"
_MODEL = "tests/unit/delivery/test_native_model.py"

NATIVE_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="no byte overtakes a buffered one",
        file=_MODULE,
        old="    if (is_usable == 1) is_usable = returns_zero(direct->get_write_buffer_size, direct->transport);\n",
        new="",
        argv=test(_SENDS, "test_a_socket_is_left_to_its_transport"),
    ),
    Mutation(
        guard="no send on a closing transport",  # its descriptor may soon be another client's
        file=_MODULE,
        old="returns_zero(direct->is_closing, direct->transport)",
        new="1",
        argv=test(_SENDS, "test_a_socket_is_left_to_its_transport"),
    ),
    Mutation(
        guard="the rest goes to the transport",
        file="gateway/delivery/write_queue.py",
        old="memoryview(data)[sent:] if sent else data",
        new="data",
        argv=test(_MODEL, "test_both_paths_do_the_same"),
    ),
    Mutation(
        guard="a full socket has taken nothing",
        file=_MODULE,
        old="return sent < 0 ? 0 : (Py_ssize_t)sent;",
        new="return sent < 0 ? (Py_ssize_t)length : (Py_ssize_t)sent;",
        argv=test(_SENDS, "test_a_full_socket_takes_nothing"),
    ),
    Mutation(
        guard="the GIL is released",
        file=_MODULE,
        old="    Py_BEGIN_ALLOW_THREADS\n",
        new="    {\n#undef Py_END_ALLOW_THREADS\n#define Py_END_ALLOW_THREADS }\n",
        argv=test(_SENDS, "test_other_threads_run_during_the_sends"),
    ),
    Mutation(
        guard="a ring is not shared by processes",
        file=_MODULE,
        old=" || ring->owner != getpid()",
        new="",
        argv=test(_SENDS, "test_a_ring_is_for_the_process_that_made_it"),
    ),
    Mutation(
        guard="sends beyond the places of a ring",
        file=_MODULE,
        old="    } while (next < count);",
        new="    } while (0);",
        argv=test(_SENDS, "test_more_sends_than_a_ring_has_places"),
    ),
    Mutation(
        guard="no direct sends while the connection queues",
        file="gateway/connection/connection.py",
        old="            self.write, self.direct = self._hold, None\n",
        new="            self.write = self._hold\n",
        argv=test("tests/unit/connection/test_connection.py", "test_only_an_open_connection_that_does_not_queue"),
    ),
    Mutation(
        guard="none are prepared while the connection queues",
        file="gateway/connection/connection.py",
        old="if self.direct is None and self.write == self._wire.write:",
        new="if self.direct is None:",
        argv=test("tests/unit/connection/test_connection.py", "test_only_an_open_connection_that_does_not_queue"),
    ),
    Mutation(
        guard="a pass prepares some connections for direct sends",
        file="gateway/delivery/write_queue.py",
        old="            if not left:\n                return\n",
        new="",
        argv=test("tests/unit/delivery/test_write_queue.py", "test_passes_prepare_some_connections"),
    ),
    Mutation(
        guard="a pass by the extension module prepares the connections that it left out",
        file="gateway/delivery/write_queue.py",
        old="        self._open(connections[index] for index, _sent in incomplete if targets[index] is None)\n",
        new="",
        argv=test("tests/unit/delivery/test_write_queue.py", "test_passes_prepare_some_connections"),
    ),
    Mutation(
        guard="a pass by transports prepares connections",
        file="gateway/delivery/write_queue.py",
        old="            self._open(connections)\n",
        new="",
        argv=test("tests/unit/delivery/test_write_queue.py", "test_passes_prepare_some_connections"),
    ),
    Mutation(
        guard="no direct sends on TLS",
        file="gateway/connection/native/direct_sender.py",
        old=" or (kind.__module__, kind.__qualname__) not in _PLAIN or",
        new=" or",
        argv=test("tests/unit/connection/native/test_direct_sender.py", "test_tls_and_unknown_transports"),
    ),
    Mutation(
        guard="a closing transport is not prepared for direct sends",
        file="gateway/connection/native/direct_sender.py",
        old=" or transport.is_closing():",
        new=":",
        argv=test("tests/unit/connection/native/test_direct_sender.py", "test_a_closing_transport_does_not_take_part"),
    ),
    Mutation(
        guard="only connections that are prepared now count",
        file="gateway/delivery/write_queue.py",
        old="            if connection.direct is not None:  # it has bytes in its transport's buffer\n                continue\n",
        new="",
        argv=test("tests/unit/delivery/test_write_queue.py", "test_connections_that_are_prepared_and_cannot_be_used"),
    ),
    Mutation(
        guard="a connection that cannot be prepared ends alone",
        file="gateway/delivery/write_queue.py",
        old="            except Exception:\n                self._give_up(connection)\n            if not left:",
        new="            except KeyError:\n                self._give_up(connection)\n            if not left:",
        argv=test("tests/unit/delivery/test_write_queue.py", "test_a_connection_that_cannot_be_prepared"),
    ),
)
