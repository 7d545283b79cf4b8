"""RELIABILITY "Bad input", the rows of the codec: a corpus like JSONTestSuite's, and Hypothesis.

y_ must be accepted, n_ refused with InvalidMessage. Where RFC 8259 leaves the choice, ours is strict.
"""

import json
import math
import struct

import msgpack  # type: ignore[import-untyped]  # ships no annotations
import pytest

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import MAX_DEPTH, MAX_VALUES, Encoding, decode
from tests.support.scenarios.round_trips import TEXTS, assert_goes_round

JSON_CORPUS: dict[str, bytes] = {
    # structure
    "n_empty": b"",
    "n_white_space_only": b" \t\r\n",
    "y_white_space_around": b" \t\r\n[ 1 , 2 ]\n",
    "n_form_feed": b"\x0c[]",
    "n_vertical_tab": b"[\x0b]",
    "n_no_break_space": b"[]\xc2\xa0",
    "n_nul_before": b"\x00[]",
    "n_nul_after": b"[]\x00",
    "n_byte_order_mark": b"\xef\xbb\xbf{}",
    "n_byte_order_mark_utf16": "[]".encode("utf-16"),
    "n_utf16": "[1]".encode("utf-16-le"),
    "n_utf32": "[1]".encode("utf-32-le"),
    "n_two_values": b"[] []",
    "n_two_lines": b"1\n2",
    "n_trailing_text": b"{}x",
    "n_trailing_comment": b"{}//x",
    "n_comment": b"[/**/]",
    "n_bare_word": b"abc",
    "n_single_bracket": b"]",
    "n_unclosed_array": b"[1",
    "n_unclosed_object": b'{"a":1',
    "n_mismatched": b'["a"}',
    "n_array_trailing_comma": b"[1,]",
    "n_array_leading_comma": b"[,1]",
    "n_array_double_comma": b"[1,,2]",
    "n_array_no_comma": b"[1 2]",
    "n_array_colon": b"[1:2]",
    "y_array_empty": b"[]",
    "y_array_mixed": b'[null,1,"1",{},[]]',
    "n_object_trailing_comma": b'{"a":1,}',
    "n_object_no_value": b'{"a"}',
    "n_object_no_colon": b'{"a" 1}',
    "n_object_two_colons": b'{"a"::1}',
    "n_object_comma_only": b"{,}",
    "n_object_key_number": b"{1:1}",
    "n_object_key_null": b"{null:1}",
    "n_object_key_bare": b"{a:1}",
    "n_object_key_single_quotes": b"{'a':1}",
    "y_object_empty": b"{}",
    "y_object_empty_key": b'{"":0}',
    "y_object_duplicate_keys": b'{"a":1,"a":2}',
    "y_object_escaped_key": b'{"\\u0061\\n":1}',
    "y_object_proto_key": b'{"__proto__":{"constructor":1},"__class__":0}',
    # literals
    "y_null": b"null",
    "y_true": b"true",
    "y_false": b"false",
    "n_literal_capital": b"True",
    "n_literal_cut": b"nul",
    "n_literal_long": b"nulll",
    "n_undefined": b"undefined",
    # numbers
    "y_zero": b"0",
    "y_minus_zero": b"-0",
    "y_minus_zero_point": b"-0.0",
    "y_exponents": b"[1e5,1E+2,1e-2,0e1,-1.5E10]",
    "y_underflow": b"1e-999",
    "y_zero_huge_exponent": b"0e99999999",
    "y_largest_double": b"1.7976931348623157e308",
    "y_smallest_double": b"5e-324",
    "y_many_digits_of_a_fraction": b"0." + b"1" * 400,
    "y_integer_min": b"-9223372036854775808",
    "y_integer_max": b"18446744073709551615",
    "y_integer_19_digits": b"[1763811111000000000]",
    "n_integer_below_min": b"-9223372036854775809",
    "n_integer_above_max": b"18446744073709551616",
    "n_integer_above_max_inside": b'{"a":[{"b":18446744073709551616}]}',
    "n_integer_100_digits": b"1" * 100,
    "n_integer_5000_digits": b"1" * 5000,
    "n_integer_minus_5000_digits": b"-" + b"1" * 5000,
    "n_1e999": b"1e999",
    "n_minus_1e999": b"[-1e999]",
    "n_1e309_by_digits": b"1" * 400 + b".0",
    "n_huge_exponent": b"1e" + b"9" * 400,
    "n_nan": b"NaN",
    "n_nan_inside": b"[NaN]",
    "n_infinity": b"Infinity",
    "n_minus_infinity": b"-Infinity",
    "n_leading_zero": b"01",
    "n_minus_leading_zero": b"-01",
    "n_plus": b"+1",
    "n_minus_alone": b"-",
    "n_double_minus": b"--1",
    "n_point_first": b".5",
    "n_point_last": b"1.",
    "n_point_exponent": b"1.e1",
    "n_exponent_empty": b"1e",
    "n_exponent_sign_only": b"1e+",
    "n_hex": b"0x10",
    "n_underscore": b"1_000",
    "n_full_width_digit": "\uff11".encode(),
    "n_two_points": b"1.2.3",
    # strings
    "y_string_empty": b'""',
    "y_string_escapes": b'"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9"',
    "y_string_escaped_nul": b'"a\\u0000b"',
    "y_string_delete": b'"\x7f"',
    "y_string_line_separators": '"\u2028\u2029"'.encode(),
    "y_string_noncharacter": '"\uffff\U0010ffff"'.encode(),
    "y_string_surrogate_pair": b'"\\ud83d\\ude00"',
    "y_string_surrogate_pair_mixed_case": b'"\\uD83d\\uDe00"',
    "y_string_four_bytes": '"\U0001f600"'.encode(),
    "y_string_looks_like_limits": b'"' + b"[{" * 100 + b"9" * 100 + b'"',
    "n_string_lone_high_surrogate": b'"\\ud800"',
    "n_string_lone_high_surrogate_then_text": b'"\\ud800abcdef"',
    "n_string_lone_high_surrogate_then_escape": b'"\\ud800\\n12345"',
    "n_string_high_then_bmp": b'"\\ud800\\u0041"',
    "n_string_two_high_surrogates": b'"\\ud800\\ud800"',
    "n_string_lone_low_surrogate": b'"\\udc00"',
    "n_string_swapped_surrogates": b'"\\ude00\\ud83d"',
    "n_string_surrogate_in_key": b'{"\\ud800":1}',
    "n_string_surrogate_in_utf8": b'"\xed\xa0\x80"',
    "n_string_surrogate_pair_in_utf8": b'"\xed\xa0\xbd\xed\xb8\x80"',
    "n_string_unescaped_control": b'"a\x01b"',
    "n_string_unescaped_nul": b'"a\x00b"',
    "n_string_unescaped_newline": b'"a\nb"',
    "n_string_unescaped_tab": b'"a\tb"',
    "n_string_bad_escape": b'"\\x41"',
    "n_string_bad_escape_apostrophe": b'"\\\'"',
    "n_string_short_u": b'"\\u12"',
    "n_string_not_hex": b'"\\u12G4"',
    "n_string_single_quotes": b"'a'",
    "n_string_unclosed": b'"a',
    "n_string_unclosed_escape": b'"a\\',
    "n_string_unclosed_surrogate": b'"\\ud83d\\u',
    "n_utf8_lone_start": b'"\xff"',
    "n_utf8_lone_continuation": b'"\x80"',
    "n_utf8_truncated": b'"\xe2\x82"',
    "n_utf8_overlong_slash": b'"\xc0\xaf"',
    "n_utf8_overlong_nul": b'"\xc0\x80"',
    "n_utf8_beyond_10ffff": b'"\xf4\x90\x80\x80"',
    "n_utf8_latin1": '"é"'.encode("latin-1"),
    "n_utf8_in_key": b'{"\xff":1}',
    "n_utf8_after_escape": b'"\\n\xff"',
    "n_utf8_outside_string": b"[\xff]",
    # size
    "y_depth_max": b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
    "y_many_brackets_not_deep": b"[" + b"[]," * 100 + b"{}]",
    "n_depth_above_max": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "n_depth_above_max_objects": b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
    "n_depth_900": b"[" * 900 + b"]" * 900,
    "n_depth_100000": b"[" * 100_000 + b"]" * 100_000,
    "n_depth_100000_unclosed": b"[" * 100_000,
    "n_depth_100000_objects": b'{"a":' * 100_000,
    "y_values_max": b"[" + b",".join([b"0"] * (MAX_VALUES - 1)) + b"]",
    "n_values_above_max": b"[" + b",".join([b"0"] * MAX_VALUES) + b"]",
    "n_values_above_max_empty_lists": b"[" + b",".join([b"[]"] * MAX_VALUES) + b"]",
    # the other encoding
    "n_msgpack": msgpack.packb({"a": 1}),
    "n_sequenced_on_redis": b"\xc11 e:1:t p j\n{}",
}


DOUBLE = b"\xcb"


MSGPACK_CORPUS: dict[str, bytes] = {
    # structure
    "n_empty": b"",
    "n_never_used": b"\xc1",
    "n_never_used_inside": b"\x91\xc1",
    "n_trailing_byte": b"\xc0\xc0",
    "n_trailing_garbage": b"\x80\xc1",
    "n_truncated_array": b"\x92\x01",
    "n_truncated_map_value": b"\x81\xa1a",
    "n_truncated_string": b"\xa5abc",
    "n_truncated_double": DOUBLE + b"\x00" * 7,
    "n_truncated_header": b"\xdc\x00",
    "y_nil": b"\xc0",
    "y_booleans": b"\x92\xc2\xc3",
    "y_empty_containers": b"\x92\x90\x80",
    "y_long_forms_of_short": b"\xdd\x00\x00\x00\x01\xdf\x00\x00\x00\x01\xdb\x00\x00\x00\x01a\xd9\x00",
    # numbers
    "y_integer_min": b"\xd3\x80" + b"\x00" * 7,
    "y_integer_max": b"\xcf" + b"\xff" * 8,
    "y_integers_of_all_sizes": b"\x99\x7f\xe0\xcc\xff\xcd\xff\xff\xce\xff\xff\xff\xff\xd0\x80\xd1\x80\x00"
    + b"\xd2\x80\x00\x00\x00\xd3"
    + b"\xff" * 8,
    "y_integer_not_the_shortest": b"\xcf" + b"\x00" * 8,
    "y_double": DOUBLE + struct.pack(">d", 1.5),
    "y_double_minus_zero": DOUBLE + struct.pack(">d", -0.0),
    "y_double_largest": DOUBLE + struct.pack(">d", 1.7976931348623157e308),
    "y_single": b"\xca" + struct.pack(">f", 1.5),
    "n_double_nan": DOUBLE + struct.pack(">d", math.nan),
    "n_double_nan_negative_payload": DOUBLE + b"\xff\xf8\x00\x00\x00\x00\x00\x01",
    "n_double_infinity": DOUBLE + struct.pack(">d", math.inf),
    "n_double_minus_infinity": DOUBLE + struct.pack(">d", -math.inf),
    "n_single_nan": b"\xca" + struct.pack(">f", math.nan),
    "n_single_infinity": b"\xca" + struct.pack(">f", math.inf),
    "n_nan_inside": b"\x81\xa1a\x92\x01" + DOUBLE + struct.pack(">d", math.nan),
    # strings
    "y_string_utf8": msgpack.packb("é\u2028\U0001f600\x00"),
    "n_string_invalid_utf8": b"\xa1\xff",
    "n_string_surrogate": b"\xa3\xed\xa0\x80",
    "n_string_overlong": b"\xa2\xc0\xaf",
    "n_string_truncated_utf8": b"\xa2\xe2\x82",
    "n_string_huge_header": b"\xdb\xff\xff\xff\xff",
    "n_string_header_beyond_end": b"\xdb\x00\x00\x00\x05abc",
    "y_text_whose_utf8_looks_like_headers": msgpack.packb("\u0700\u0740\u0100\u0280\u0800" * 50),
    # bin, ext
    "y_many_bytes_like_array_headers": msgpack.packb([0xDCDD] * 40),
    "n_bin": b"\xc4\x01a",
    "n_bin_empty": b"\xc4\x00",
    "n_bin16_empty": b"\xc5\x00\x00",
    "n_bin32_empty": b"\xc6\x00\x00\x00\x00",
    "n_bin_empty_inside": b"\x81\xa1a\x91\xc4\x00",
    "n_bin_huge_header": b"\xc6\xff\xff\xff\xff",
    "n_ext8_empty": b"\xc7\x00\x05",
    "n_ext16_empty": b"\xc8\x00\x00\x05",
    "n_ext32_empty": b"\xc9\x00\x00\x00\x00\x05",
    "n_ext8": b"\xc7\x03\x05abc",
    "n_ext32_huge_header": b"\xc9\xff\xff\xff\xff\x01",
    "n_fixext1": b"\xd4\x05a",
    "n_fixext2": b"\xd5\x05ab",
    "n_fixext16": b"\xd8\x05" + b"a" * 16,
    "n_timestamp32": b"\xd6\xff" + b"\x00" * 4,
    "n_timestamp64": b"\xd7\xff" + b"\x00" * 8,
    "n_timestamp96": b"\xc7\x0c\xff" + b"\x00" * 12,
    "n_timestamp_empty": b"\xc7\x00\xff",
    # maps
    "y_duplicate_keys": b"\x82\xa1a\x01\xa1a\x02",
    "y_empty_key": b"\x81\xa0\x01",
    "n_key_integer": b"\x81\x01\x01",
    "n_key_nil": b"\x81\xc0\x01",
    "n_key_boolean": b"\x81\xc3\x01",
    "n_key_double": b"\x81" + DOUBLE + struct.pack(">d", 1.5) + b"\x01",
    "n_key_bin": b"\x81\xc4\x01a\x01",
    "n_key_bin_empty": b"\x81\xc4\x00\x01",
    "n_key_array": b"\x81\x90\x01",
    "n_key_map": b"\x81\x80\x01",
    "n_key_ext": b"\x81\xd4\x05a\x01",
    "n_key_invalid_utf8": b"\x81\xa1\xff\x01",
    # size
    "n_array_huge_header": b"\xdd\xff\xff\xff\xff",
    "n_array16_huge_header": b"\xdc\xff\xff",
    "n_map_huge_header": b"\xdf\xff\xff\xff\xff",
    "n_map16_huge_header": b"\xde\xff\xff",
    "n_huge_header_inside": b"\x91\x91\x91\xdd\xff\xff\xff\xff",
    "y_depth_max": b"\x91" * (MAX_DEPTH - 1) + b"\x90",
    "y_depth_max_long_headers": b"\xdc\x00\x01" * MAX_DEPTH + b"\xcd\xdc\xdd",
    "n_truncated_after_many_long_headers": b"\xdc\x00\x64" + b"\xdc\x00\x00" * 40,
    "n_depth_above_max": b"\x91" * MAX_DEPTH + b"\x90",
    "n_depth_above_max_maps": b"\x81\xa1a" * (MAX_DEPTH + 1) + b"\xc0",
    "n_depth_above_max_long_headers": b"\xdd\x00\x00\x00\x01" * (MAX_DEPTH + 1) + b"\xc0",
    "n_depth_900": b"\x91" * 900 + b"\xc0",
    "n_depth_100000": b"\x91" * 100_000 + b"\xc0",
    "n_depth_100000_maps": b"\x81\xa1a" * 100_000,
    "n_depth_in_keys": b"\x81" * 100_000,
    "y_many_containers_not_deep": b"\xdc\x00\x64" + b"\x90\x80" * 50,
    "y_values_max": msgpack.packb([0] * (MAX_VALUES - 1)),
    "n_values_above_max": msgpack.packb([[0] * 6000, [0] * 6000]),
    "n_values_above_max_containers": msgpack.packb([[[]] * 6000, [[]] * 6000]),
    # the other encoding
    "n_json": b'{"a":1}',
    "n_sequenced_on_redis": b"\xc11 e:1:t p m\n\x80",
}


CORPUS = [
    pytest.param(encoding, name, data, id=f"{encoding.value}-{name}")
    for encoding, corpus in ((Encoding.JSON, JSON_CORPUS), (Encoding.MSGPACK, MSGPACK_CORPUS))
    for name, data in corpus.items()
]


@pytest.mark.parametrize(("encoding", "name", "data"), CORPUS)
def test_corpus_is_accepted_or_refused_by_its_prefix(encoding: Encoding, name: str, data: bytes) -> None:
    if name.startswith("y_"):
        value = decode(data, encoding)
        reference = json.loads(data) if encoding is Encoding.JSON else msgpack.unpackb(data)
        assert value == reference
        assert_goes_round(value)
        return
    assert name.startswith("n_")
    with pytest.raises(InvalidMessage) as caught:
        decode(data, encoding)
    assert TEXTS.fullmatch(str(caught.value))
    for wrap in (lambda d: b"[[" + d + b"]]", lambda d: b'{"a":' + d + b"}"):  # nor is it accepted inside of others
        if encoding is Encoding.JSON and data.strip():
            with pytest.raises(InvalidMessage):
                decode(wrap(data), encoding)
