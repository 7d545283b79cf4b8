"""The compiled masking gives the same results as the plain one."""

from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.http.websocket.masking import unmask
from snorky.gateway.protocol.ws_frames import unmask as plain


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_compiled_masking_equals_the_plain_one(data: bytes, mask: bytes) -> None:
    before = bytes(data)
    assert unmask(data, mask) == plain(data, mask)
    assert data == before, "the input is not changed in place"


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_masking_twice_is_the_identity(data: bytes, mask: bytes) -> None:
    assert unmask(unmask(data, mask), mask) == data
