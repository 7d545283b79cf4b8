/** Invalid values, forged replies and messages that are too large affect only their caller. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { json, msgpack } from "../src/snorky.js";
import { settled } from "../support/fakes.js";
import { start, startOpen, withCode } from "../support/start.js";

/** @param {number} depth @param {unknown} [value] */
function nested(depth, value = 0) {
  for (let level = 0; level < depth; level++) value = level % 2 ? [value] : { k: value };
  return value;
}

/** @type {any[]} */
const endless = [];
endless.push(endless);

/** @type {Record<string, any>} */
const BAD_VALUES = {
  "a lone surrogate": "nice 😀".slice(0, 6),
  "a lone surrogate in a key": { "\udc00": 1 },
  "an integer above 64 bits": 2 ** 64,
  "an integer below 64 bits": -(2 ** 63) - 2_048,
  "an integer below an exponent": 9e20,
  depth: nested(30),
  "10,001 values": Array(10_001).fill(0),
  "10,000 values, with those around them": Array(9_994).fill(0),
  "a huge sparse array": Array(2 ** 32 - 1),
  NaN,
  Infinity: [-Infinity],
  "an endless value": endless,
  undefined,
  "undefined in an array": [undefined],
  "a function": { f: () => 0 },
  "a symbol": [Symbol("s")],
  "a BigInt": 1n,
  "a Map": new Map([[1, 2]]),
  "a Set": { s: new Set([1]) },
  bytes: new Uint8Array(3),
  "an invalid date": new Date(NaN),
};

for (const encoding of [json, msgpack]) {
  for (const isOpen of [true, false]) {
    const where = `in ${encoding.name}, ${isOpen ? "with" : "without"} a connection`;
    test(`values that nodes reject are rejected at the call and not queued, ${where}`, async () => {
      const options = { encoding, queueMax: 1, waitingCallsMax: 1, token: "ann" };
      const { client, network, clock, events } = (isOpen ? startOpen : start)(options);
      const timers = clock.timers;
      for (const [name, value] of Object.entries(BAD_VALUES)) {
        const isBad = (/** @type {any} */ error) => error instanceof TypeError || error instanceof RangeError;
        await assert.rejects(client.publish("news", value), isBad, name);
        if (value !== undefined) await assert.rejects(client.call("rpc", "echo", { value }), isBad, name);
        if (value !== undefined) assert.throws(() => client.subscribe([value], () => {}), isBad, name);
      }
      await assert.rejects(client.publish("x".repeat(256), 1), TypeError);
      await assert.rejects(client.publish("news", 1, { key: "" }), TypeError);
      await assert.rejects(client.publish("news", 1, { service: "no such name" }), TypeError);
      await assert.rejects(client.call("rpc", "echo", /** @type {any} */ ([1])), TypeError);
      assert.throws(() => client.subscribe("news", () => {}, { service: "" }), TypeError);
      for (const value of ["x".repeat(65_500), "é".repeat(40_000)]) {
        await assert.rejects(client.publish("news", value), withCode("too_large"));
        await assert.rejects(client.call("rpc", "echo", { value }), withCode("too_large"));
      }
      assert.equal(client.queued, 0);
      assert.equal(clock.timers, timers);
      const good = Promise.all([client.publish("news", "good"), client.call("rpc", "echo")]);
      if (!isOpen) network.last.open();
      await settled();
      assert.deepEqual([...network.last.commands].sort(), ["echo", "publish"]);
      await network.last.answer("publish");
      await network.last.answer("echo");
      await good;
      assert.deepEqual(events.map(([event]) => event).filter((event) => event !== "open"), []);
    });
  }

  test(`a value at a limit is sent unchanged in ${encoding.name}`, async () => {
    const { client, network } = startOpen({ encoding, messageMaxBytes: 100_000 });
    const values = [
      nested(29), Array(9_992).fill(0), 2 ** 64 - 2_048, -(2 ** 63), [-(2 ** 63), "-9223372036854776000"], 1e21, -1e300, 5e-324,
      "😀\0\u2028", { "😀": null }, JSON.parse('{"__proto__": 1}'), "x".repeat(60_000), [], {}, false,
    ];
    for (const value of values) void client.publish("news", value).catch(() => {});
    assert.deepEqual(network.last.unanswered("publish").map(({ message }) => message.params.message), values);
  });
}

test("-2^63 is written with its exact digits, because the rounded form is below it", () => {
  assert.equal(json.encode({ n: [-(2 ** 63), "-9223372036854776000", 0.5, null] }),
    '{"n":[-9223372036854775808,"-9223372036854776000",0.5,null]}');
});

test("a value is copied as JSON.stringify writes it", () => {
  const { client, network } = startOpen();
  const value = { at: new Date(0), boxed: Object(1), left: undefined, own: new (class { x = 1; })() };
  void client.publish("news", value).catch(() => {});
  assert.deepEqual(network.last.sent[0]?.message.params.message, JSON.parse(JSON.stringify(value)));
});

test("a message at the size limit is sent, one byte more is rejected", async () => {
  const { client, network } = startOpen();
  const around = JSON.stringify({ service: "pubsub", message: {
    command: "publish", params: { channel: "news", message: "" }, callId: "0".repeat(32),
  } }).length;
  void client.publish("news", "x".repeat(65_536 - around)).catch(() => {});
  assert.equal(network.last.sent.length, 1);
  await assert.rejects(client.publish("news", "x".repeat(65_537 - around)), withCode("too_large"));
});

test("later changes of a channel by the application have no effect", () => {
  const { client, network } = start();
  const channel = { room: 1 };
  client.subscribe(channel, () => {});
  channel.room = 2;
  network.last.open();
  assert.deepEqual(network.last.sent[0]?.message.params, { channel: { room: 1 } });
});

test("a reply of another service does not settle a call, and call IDs cannot be guessed", async () => {
  const { client, network } = startOpen();
  let isSettled = false;
  const call = client.call("rpc", "first").finally(() => (isSettled = true));
  const ids = network.last.sent.map(({ message }) => message.callId);
  for (const [service, callId] of [["chat", ids[0]], ["rpc", 1], ["rpc", "1"], ["rpc", null]]) {
    network.last.say(service, { type: "response", callId, data: "forged" });
    network.last.say(service, { type: "error", callId, message: "forged" });
  }
  await settled();
  assert.equal(isSettled, false);
  await network.last.answer("first", { type: "response", data: "true" });
  assert.equal(await call, "true");
  const other = startOpen();
  void other.client.call("rpc", "first").catch(() => {});
  const otherId = other.network.last.sent[0]?.message.callId;
  assert.match(ids[0], /^[0-9a-f]{16}\.1$/);
  assert.notEqual(ids[0], otherId);
});

test("a call that ended a connection with 1009 rejects with too_large, and publications are not affected", async () => {
  const { client, network, clock } = startOpen({ token: "ann" });
  const large = assert.rejects(client.call("rpc", "echo", { x: "x".repeat(1_000) }), withCode("too_large"));
  const other = assert.rejects(client.call("rpc", "echo"), withCode("disconnected"));
  const kept = client.publish("news", "small");
  network.last.drop(1009);
  await Promise.all([large, other]);
  await clock.pass(1_000);
  network.last.open();
  await settled();
  await network.last.answer("publish");
  await kept;
});

test("a message that the server cannot parse is not sent again and again", async () => {
  const { client, network, clock } = startOpen({ token: "ann", callTimeoutMs: 1_000 });
  const unread = assert.rejects(client.publish("news", 1), withCode("invalid_message"));
  network.last.say("gateway", { type: "error", callId: null, message: "Malformed", code: "invalid_message" });
  await clock.pass(1_000);
  await unread;
  await clock.pass(60_000);
  assert.deepEqual(network.last.commands.filter((command) => command === "publish"), ["publish"]);
});
