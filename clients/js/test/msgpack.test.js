import assert from "node:assert/strict";
import { test } from "node:test";

import { decode, encode } from "../src/wire/msgpack.js";

/** @param {unknown} value */
const hex = (value) => Buffer.from(encode(value)).toString("hex");
/** @param {string} digits */
const bytes = (digits) => Uint8Array.from(Buffer.from(digits, "hex"));

test("integers, strings, arrays and maps of all sizes are encoded in the shortest form and decoded again", () => {
  /** @type {[unknown, string][]} value, and how its bytes begin */
  const cases = [
    [null, "c0"], [false, "c2"], [true, "c3"],
    [0, "00"], [127, "7f"], [128, "cc80"], [255, "ccff"], [256, "cd0100"], [65535, "cdffff"],
    [65536, "ce00010000"], [2 ** 32 - 1, "ceffffffff"], [2 ** 32, "cf0000000100000000"],
    [Number.MAX_SAFE_INTEGER, "cf001fffffffffffff"],
    [-1, "ff"], [-32, "e0"], [-33, "d0df"], [-128, "d080"], [-129, "d1ff7f"], [-32768, "d18000"],
    [-32769, "d2ffff7fff"], [-(2 ** 31), "d280000000"], [-(2 ** 31) - 1, "d3ffffffff7fffffff"],
    [Number.MIN_SAFE_INTEGER, "d3ffe0000000000001"],
    [1.5, "cb3ff8000000000000"], [1e300, "cb7e37e43c8800759c"],
    ["", "a0"], ["é", "a2c3a9"], ["😀", "a4f09f9880"], ["x".repeat(31), "bf78"], ["x".repeat(32), "d92078"],
    ["x".repeat(255), "d9ff78"], ["x".repeat(256), "da010078"], ["x".repeat(65536), "db0001000078"],
    [[], "90"], [Array(15).fill(0), "9f00"], [Array(16).fill(0), "dc001000"], [Array(65536).fill(0), "dd0001000000"],
    [{}, "80"], [{ a: 1 }, "81a16101"],
    [Object.fromEntries(Array.from({ length: 16 }, (_, index) => [`k${index}`, index])), "de0010"],
  ];
  for (const [value, beginning] of cases) {
    assert.ok(hex(value).startsWith(beginning), `${hex(value).slice(0, 40)} does not begin with ${beginning}`);
    assert.deepEqual(decode(encode(value)), value);
  }
});

test("a message has the same meaning in both encodings", () => {
  const message = {
    left: undefined, out: () => 0, nan: NaN, list: [undefined, NaN, () => 0], at: new Date(0), zero: -0,
    boxed: [Object(1), Object("s"), Object(false)], nested: { deep: [{ "ключ": "значение" }] },
  };
  assert.deepEqual(decode(encode(message)), JSON.parse(JSON.stringify(message)));
});

test("64-bit integers and 32-bit floats from other encoders are read as numbers", () => {
  assert.equal(decode(bytes("cfffffffffffffffff")), 2 ** 64);
  assert.equal(decode(bytes("d38000000000000000")), -(2 ** 63));
  assert.equal(decode(bytes("ca3fc00000")), 1.5);
});

test("a __proto__ member is data, as with JSON.parse", () => {
  const value = /** @type {any} */ (decode(bytes("81a95f5f70726f746f5f5f81a16101")));
  assert.deepEqual(Object.keys(value), ["__proto__"]);
  assert.equal(value.a, undefined);
});

test("types that JSON lacks, truncated data and trailing data are rejected", () => {
  const refused = {
    binary: "c40161", extension: "d4010000", "timestamp": "d6ff00000000", "never used": "c1", "number as key": "810102",
    "bytes left over": "c0c0", nothing: "", "cut string": "a361", "cut array": "9201", "huge array header": "ddffffffff",
    "huge string header": "dbffffffff61", "bad UTF-8": "a2c328", "too deep": `${"91".repeat(100)}c0`,
  };
  for (const [name, digits] of Object.entries(refused)) assert.throws(() => decode(bytes(digits)), TypeError, name);
});

test("values that cannot be a message are rejected before sending", () => {
  /** @type {any} */
  const endless = [];
  endless.push(endless);
  for (const value of [1n, "\udc00", { "\ud800": 1 }, endless]) assert.throws(() => encode(value), TypeError);
});

test("a view into a larger buffer is read within its bounds", () => {
  assert.equal(decode(bytes("ff01ff").subarray(1, 2)), 1);
});
