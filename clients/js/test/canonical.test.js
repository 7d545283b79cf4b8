import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";

import { canonical, channelName } from "../src/wire/canonical.js";

/**
 * The test vectors shared by all languages; undefined if this folder is not inside the project.
 *
 * @param {string} name
 */
function vectors(name) {
  const file = new URL(`../../../tests/vectors/${name}`, import.meta.url);
  return existsSync(file) ? JSON.parse(readFileSync(file, "utf-8")) : undefined;
}

const forms = vectors("canonical.json");
const names = vectors("redis_names.json");
const isAlone = { skip: forms === undefined && "the shared vectors are not here" };

test("canonical forms equal those of the shared vectors", isAlone, () => {
  assert.ok(forms.canonical.length > 0);
  for (const { name, channel, canonical: form } of forms.canonical) assert.equal(canonical(JSON.parse(channel)), form, name);
});

test("two channels are the same exactly when the shared vectors say so", isAlone, () => {
  for (const [one, other] of forms.equal) assert.equal(canonical(JSON.parse(one)), canonical(JSON.parse(other)));
  for (const [one, other] of forms.unequal) assert.notEqual(canonical(JSON.parse(one)), canonical(JSON.parse(other)));
});

test("channels that are invalid in the shared vectors are rejected", isAlone, () => {
  assert.ok(forms.refused.length > 0);
  for (const { name, channel } of forms.refused) {
    assert.throws(() => channelName(JSON.parse(channel)), TypeError, name);
  }
});

test("numbers are written as in RFC 8785 appendix B", isAlone, () => {
  for (const { ieee754, text } of forms.numbers) {
    const number = Buffer.from(ieee754, "hex").readDoubleBE();
    const isUnsafe = Number.isInteger(number) && !Number.isSafeInteger(number) && !text.includes("e");
    if (isUnsafe) assert.throws(() => canonical(number), TypeError, text);
    else assert.equal(canonical(number), text);
  }
});

test("Redis names equal those of the shared vectors", { skip: names === undefined && "no shared vectors" }, () => {
  assert.ok(names.names.length > 0);
  for (const { prefix, service, channel, redis } of names.names) {
    assert.equal(`${prefix}:{${service}:${channelName(JSON.parse(channel))}}`, redis);
  }
});

test("values that are not JSON have no canonical form", () => {
  for (const value of [undefined, NaN, Infinity, () => 0, Symbol("x"), 1n, "\ud800", [undefined], { a: NaN }]) {
    assert.throws(() => canonical(value), TypeError);
  }
});

test("key order does not matter", () => {
  assert.equal(canonical({ b: [1, { d: null, c: true }], a: "x" }), '{"a":"x","b":[1,{"c":true,"d":null}]}');
});
