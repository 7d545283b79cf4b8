/** Functions that give subscription tokens: those that fail, never answer, or are still running when all is closed. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { settled } from "../support/fakes.js";
import { start, startOpen, withCode } from "../support/start.js";

const granted = (/** @type {number} */ expiresInS) => ({ type: "response", data: { expiresInS } });

/** A function that gives t1, t2, ... and the channels that it was called with. */
function counting() {
  /** @type {any[]} */
  const channels = [];
  return { channels, token: async (/** @type {any} */ channel) => `t${channels.push(channel)}` };
}

for (const [what, value] of /** @type {[string, any][]} */ ([
  ["nothing", undefined], ["a number", 7], ["an empty text", ""], ["an object", { token: "t" }], ["a text with spaces", "a b"],
])) {
  test(`a function that gives ${what} is reported and called again with backoff`, async () => {
    const { client, network, clock, events } = startOpen();
    let count = 0;
    const news = client.subscribe("news", () => {}, { token: () => (++count < 3 ? value : "good") });
    await settled();
    await clock.pass(1_500 + 3_000);
    assert.deepEqual(events.map(([event, detail]) => [event, detail.channel, detail.error?.code]), [
      ["open", undefined, undefined], ["error", "news", "token"], ["error", "news", "token"],
    ]);
    assert.deepEqual(network.last.sent.map(({ message }) => message.params.token), ["good"]);
    await network.last.answer("subscribe", granted(60));
    await news.ready;
  });
}

test("a function that throws at once does not disturb the caller or other channels", async () => {
  const { client, network, clock, events } = startOpen();
  client.subscribe("bad", () => {}, { token() { throw new Error("bug"); } });
  const good = client.subscribe("good", () => {}, { token: counting().token });
  await settled();
  await network.last.answer("subscribe", granted(60));
  await good.ready;
  assert.deepEqual(events.filter(([event]) => event === "error").map(([, { channel }]) => channel), ["bad"]);
  client.close();
  assert.equal(clock.timers, 0);
});

test("a function that never answers is reported after callTimeoutMs and called again; late answers are ignored", async () => {
  const { client, network, clock, events } = startOpen();
  /** @type {((token: string) => void)[]} */
  const pending = [];
  const slow = client.subscribe("slow", () => {}, { token: () => new Promise((resolve) => pending.push(resolve)) });
  /** @type {any[]} */
  const heard = [];
  client.subscribe("quick", (message) => heard.push(message));
  await network.last.answer("subscribe");
  await clock.pass(9_999);
  network.last.bring("quick", 1);
  assert.deepEqual([heard, events.length], [[1], 1]);
  await clock.pass(1);
  assert.match(events[1][1].error.message, /in time/);
  await clock.pass(1_500);
  pending[0]?.("late");
  await settled();
  assert.deepEqual(network.last.commands, ["subscribe"]);
  pending[1]?.("good");
  await settled();
  assert.deepEqual(network.last.unanswered("subscribe").map(({ message }) => message.params.token), ["good"]);
  await network.last.answer("subscribe", granted(60));
  await slow.ready;
});

test("closing a subscription while its function runs sends nothing, and leaves no timer", async () => {
  const { client, network, clock } = startOpen();
  let give = (/** @type {string} */ _token) => {};
  client.subscribe("news", () => assert.fail("closed"), { token: () => new Promise((resolve) => (give = resolve)) });
  await settled();
  client.subscribe("early", () => {}, { token: () => assert.fail("closed before it was called") }).close();
  for (const subscription of [client.subscribe("news", () => {})]) subscription.close();
  client.close();
  give("late");
  await clock.pass(100_000);
  assert.deepEqual([network.last.sent, clock.timers], [[], 0]);
});

test("closing between the token and its use leaves nothing subscribed", async () => {
  for (let steps = 0; steps < 12; steps++) {
    const { client, network } = startOpen();
    let give = (/** @type {string} */ _token) => {};
    const news = client.subscribe("news", () => {}, { token: () => new Promise((resolve) => (give = resolve)) });
    await settled();
    give("t");
    for (let step = 0; step < steps; step++) await null;
    news.close();
    await settled();
    assert.ok(["", "subscribe unsubscribe"].includes(network.last.commands.join(" ")), `after ${steps} steps`);
  }
});

test("a late answer does not keep the timer of the next call", async () => {
  const { client, clock } = startOpen();
  /** @type {((token: string) => void)[]} */
  const pending = [];
  client.subscribe("news", () => {}, { token: () => new Promise((resolve) => pending.push(resolve)) });
  await clock.pass(11_500);
  pending[0]?.("late");
  await settled();
  client.close();
  assert.deepEqual([pending.length, clock.timers], [2, 0]);
});

test("closing the only subscription while its function runs sends nothing later", async () => {
  const { client, network, clock, events } = startOpen();
  let give = (/** @type {string} */ _token) => {};
  const news = client.subscribe("news", () => {}, { token: () => new Promise((resolve) => (give = resolve)) });
  await settled();
  news.close();
  await assert.rejects(news.ready, withCode("closed"));
  give("late");
  await clock.pass(100_000);
  assert.deepEqual([network.last.sent, clock.timers, events.length], [[], 0, 1]);
});

test("a connection that ends while the function runs is no error; the next one asks again", async () => {
  const { client, network, clock, events } = start();
  const { token, channels } = counting();
  network.last.open();
  client.subscribe("news", () => {}, { token: async (channel) => (channels.length === 0 ? (await token(channel), new Promise(() => {})) : token(channel)) });
  await settled();
  network.last.drop();
  await clock.pass(1_000);
  network.last.open();
  await settled();
  assert.deepEqual(network.last.sent.map(({ message }) => message.params.token), ["t2"]);
  assert.deepEqual(events.map(([event]) => event), ["open", "close", "reconnecting", "open"]);
});
