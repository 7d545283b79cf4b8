"""Mutations of what keeps publications prompt while many clients connect, call or leave at the same time."""

from typing import Final

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["READS_MUTATIONS"]

READS_MUTATIONS: Final[tuple[Mutation, ...]] = (
    Mutation(
        guard="no read between the loop's reads while paused",
        file="gateway/redis/connection/resp.py",
        old="if not self.is_open or self._is_paused or self._is_processing:",
        new="if not self.is_open or self._is_processing:",
        argv=test("tests/unit/redis/connection/test_read_now.py", "test_nothing_is_read_while_paused"),
    ),
    Mutation(
        guard="no read within a read",
        file="gateway/redis/connection/resp.py",
        old=" or self._is_paused or self._is_processing:",
        new=" or self._is_paused:",
        argv=test("tests/unit/redis/connection/test_read_now.py", "test_a_read_within_a_read"),
    ),
    Mutation(
        guard="bytes of TLS are left to the transport",
        file="gateway/redis/connection/resp.py",
        old='if self._transport is None or self._transport.get_extra_info("sslcontext") is not None:',
        new="if self._transport is None:",
        argv=test("tests/unit/redis/connection/test_read_now.py", "test_bytes_of_tls"),
    ),
    Mutation(
        guard="the end of a connection is left to the transport",
        file="gateway/redis/connection/resp.py",
        old="        if data:\n            self.data_received(data)\n",
        new="        if not data:\n            self.close(ConnectionLost('ended'))\n        else:\n            self.data_received(data)\n",
        argv=test("tests/unit/redis/connection/test_read_now.py", "test_the_transport_finds_the_end"),
    ),
    Mutation(
        guard="an error is left to the transport",
        file="gateway/redis/connection/resp.py",
        old="        except OSError:  # nearly always BlockingIOError: nothing has arrived\n",
        new="        except BlockingIOError:\n",
        argv=test("tests/unit/redis/connection/test_read_now.py", "test_the_transport_finds_the_end"),
    ),
    Mutation(
        guard="the second descriptor is closed",
        file="gateway/redis/connection/resp.py",
        old="            os.close(self._own_fd)\n",
        new="            pass\n",
        argv=test("tests/unit/redis/connection/test_read_now.py", "test_the_transport_finds_the_end"),
    ),
    Mutation(
        guard="publications before the next message",
        file="gateway/http/websocket/protocol.py",
        old='        """Process one read: nearly always one whole message."""\n        self._endpoint.node.interleaved_reads.tick()\n',
        new='        """Process one read: nearly always one whole message."""\n',
        argv=test("tests/unit/http/websocket/test_interleaved_reads.py", "slow_message"),
    ),
    Mutation(
        guard="publications before the next client leaves",
        file="gateway/http/websocket/protocol.py",
        old='        """Release everything."""\n        self._endpoint.node.interleaved_reads.tick()\n',
        new='        """Release everything."""\n',
        argv=test("tests/unit/http/websocket/test_interleaved_reads.py", "client_that_leaves"),
    ),
    Mutation(
        guard="publications before the next handshake",
        file="gateway/http/websocket/front_door.py",
        old="        self.handler.endpoint.node.interleaved_reads.tick()\n",
        new="",
        argv=test("tests/unit/http/websocket/test_interleaved_reads.py", "each_handshake"),
    ),
    Mutation(
        guard="interleaved reads are a period apart",
        file="gateway/delivery/interleaved_reads.py",
        old="            self._due_s = now_s + PERIOD_S\n",
        new="",
        argv=test("tests/unit/http/websocket/test_interleaved_reads.py", "test_reads_are_a_period_apart"),
    ),
    Mutation(
        guard="a Cluster is read between messages",
        file="gateway/redis/cluster/broker.py",
        old="            broker.read_now()\n",
        new="            pass\n",
        argv=test("tests/contract/test_broker.py", "test_what_has_arrived_is_delivered_without_the_event_loop"),
    ),
    Mutation(
        guard="several Redis are read between messages",
        file="gateway/redis/multi/broker.py",
        old="            broker.read_now()\n",
        new="            pass\n",
        argv=test("tests/contract/test_broker.py", "test_what_has_arrived_is_delivered_without_the_event_loop"),
    ),
    Mutation(
        guard="room for descriptors",
        file="gateway/http/websocket/handler.py",
        old="        descriptors.make_room(limits.connections)\n",
        new="",
        argv=test("tests/unit/http/serving/test_accept_gate.py", "test_a_site_makes_room"),
    ),
    Mutation(
        guard="room for descriptors is bounded",
        file="gateway/http/serving/accept_gate.py",
        old=", self.limit, ROOM_MAX)",
        new=", self.limit)",
        argv=test("tests/unit/http/serving/test_accept_gate.py", "test_room_for_descriptors"),
    ),
)
