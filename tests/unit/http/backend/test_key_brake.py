"""Brake: delays the responses to wrong keys."""

from snorky.gateway.http.backend.key_brake import ADDRESSES_MAX, FREE, INTERVAL_S, Brake


def test_each_address_has_its_own_pace_and_their_number_is_bounded() -> None:
    now_s = 0.0
    brake = Brake(clock=lambda: now_s)
    waits = [brake.wait_s("a") for _ in range(40)]
    assert waits[:FREE] == [0.0] * FREE and waits[-1] is None and waits[FREE] == INTERVAL_S
    assert brake.wait_s("b") == 0.0
    now_s += 60
    assert brake.wait_s("a") == 0.0
    for number in range(2 * ADDRESSES_MAX):
        brake.wait_s(f"address {number}")
    assert len(brake._next_s) <= ADDRESSES_MAX + 1
    now_s += 60
    assert [brake.wait_s("c") for _ in range(FREE + 1)] == [0.0] * FREE + [INTERVAL_S]
    assert len(brake._next_s) == 1, "the others would not wait any more"
