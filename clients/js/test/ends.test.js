/** How subscriptions end: expired, revoked, ended by the backend or refused. And what a move between nodes does to them. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { settled } from "../support/fakes.js";
import { startOpen, withCode } from "../support/start.js";

const at = (/** @type {number} */ offset) => ({ offset, position: `e:${offset}:t` });
const entry = (/** @type {number} */ offset) => ({ message: offset, ...at(offset) });
const recovery = (/** @type {number} */ offset, /** @type {any[]} */ messages = [], expiresInS = 100) => ({
  type: "response", data: { position: `e:${offset}:t`, recovered: true, messages, expiresInS },
});
const refusal = (/** @type {string} */ code) => ({ type: "error", message: `Refused: ${code}`, code });

/** A client whose channel "news" has the position e:5, and all that its application hears. @param {any} [token] */
async function startNews(token) {
  const all = startOpen();
  let count = 0;
  /** @type {any[]} */
  const heard = [];
  const source = token ?? (async () => `t${++count}`);
  const news = all.client.subscribe("news", (message) => heard.push(message), { token: source, recover: true });
  news.on("gap", () => heard.push("gap"));
  news.on("unsubscribed", ({ code, reason }) => heard.push([code, reason]));
  await settled();
  const socket = all.network.last;
  await socket.answer("subscribe", recovery(5));
  const end = (/** @type {string} */ code, from = socket) => {
    from.say("pubsub", { type: "unsubscribed", channel: "news", code, reason: `Because: ${code}` });
    return settled();
  };
  const reconnect = async () => {
    all.network.last.drop();
    await all.clock.pass(1_000);
    all.network.last.open();
    await settled();
    return all.network.last;
  };
  const errors = () => all.events.filter(([event]) => event === "error").map(([, { error, channel }]) => [channel, error.code]);
  const requests = (from = socket) => from.unanswered("subscribe").map(({ message }) => message.params);
  const move = async () => {
    socket.say("gateway", { type: "moving", graceMs: 4_000 });
    await all.clock.pass(1_000);
    all.network.last.open();
    await settled();
    return all.network.last;
  };
  return { ...all, news, heard, socket, end, reconnect, errors, requests, move };
}

test("an expired subscription is requested again with a new token, from the last position", async () => {
  const { socket, end, clock, heard, errors, requests } = await startNews();
  await clock.pass(1_000);
  socket.bring("news", 6, at(6));
  await end("expired");
  assert.deepEqual(requests(), [{ channel: "news", recover: "e:6:t", token: "t2" }]);
  socket.bring("news", 9, at(9)); // live, before the reply
  await socket.answer("subscribe", recovery(8, [entry(7), entry(8)]));
  assert.deepEqual([heard, errors()], [[6, 7, 8, 9], []]);
  await clock.pass(75_000);
  assert.deepEqual(socket.unanswered("refreshSubscription").map(({ message }) => message.params.token), ["t3"]);
});

test("subscriptions that expire at once are requested at most once a second", async () => {
  const { socket, end, clock, requests } = await startNews();
  for (let round = 0; round < 3; round++) {
    await end("expired");
    await clock.pass(999);
    assert.deepEqual(requests(), []);
    await clock.pass(1);
    await socket.answer("subscribe", recovery(5, [], 0));
  }
});

test("a new token for an expired subscription may be refused; the application learns it once", async () => {
  const { socket, end, clock, heard, errors, news } = await startNews();
  await clock.pass(1_000);
  await end("expired");
  await socket.answer("subscribe", refusal("not_authorized"));
  await clock.pass(100_000);
  assert.deepEqual([heard, errors()], [[["not_authorized", "Refused: not_authorized"]], [["news", "not_authorized"]]]);
  assert.deepEqual(socket.commands, ["subscribe", "subscribe"]);
  await news.ready; // it was, once
});

test("null for an expired subscription ends it", async () => {
  let count = 0;
  const { end, clock, heard, errors, socket } = await startNews(async () => (++count === 1 ? "t1" : null));
  await clock.pass(1_000);
  await end("expired");
  assert.equal(heard[0]?.[0], "not_authorized");
  assert.deepEqual([errors(), socket.commands], [[["news", "not_authorized"]], ["subscribe"]]);
  await clock.pass(100_000);
  assert.equal(count, 2);
});

test("null for a first subscription rejects `ready`, and nothing is sent", async () => {
  const { client, network, events } = startOpen();
  const news = client.subscribe("news", () => {}, { token: async () => null });
  news.on("unsubscribed", () => assert.fail("it never was subscribed"));
  await assert.rejects(news.ready, withCode("not_authorized"));
  assert.deepEqual([network.last.sent, events.map(([event]) => event)], [[], ["open", "error"]]);
});

for (const code of ["invalid_token", "not_authorized", "revoked", "not_configured"]) {
  test(`${code} in reply to subscribe is a refusal like others`, async () => {
    const { client, network, clock, events } = startOpen();
    const news = client.subscribe("news", () => {}, { token: async () => "t" });
    await settled();
    await network.last.answer("subscribe", refusal(code));
    await assert.rejects(news.ready, withCode(code));
    await clock.pass(100_000);
    assert.deepEqual(network.last.commands, ["subscribe"]);
    assert.deepEqual([events[1][0], events[1][1].channel, events[1][1].error.code], ["error", "news", code]);
  });
}

for (const code of ["revoked", "not_authorized", "unsubscribed", "anything"]) {
  test(`after the notification ${code} nothing is delivered, nor requested again`, async () => {
    const { client, socket, end, heard, errors, reconnect, clock } = await startNews();
    socket.bring("news", 6, at(6));
    await end(code);
    socket.bring("news", 7, at(7));
    await end(code);
    assert.deepEqual([heard, errors()], [[6, [code, `Because: ${code}`]], [["news", code]]]);
    assert.deepEqual([socket.commands, clock.timers], [["subscribe"], 0]);
    assert.deepEqual((await reconnect()).sent, []);
    assert.equal(client.state, "open");
  });
}

test("a text that expires ends the subscription, and so does an end without a code", async () => {
  const text = await startNews("text");
  await text.end("expired");
  assert.deepEqual([text.heard, text.socket.commands], [[["expired", "Because: expired"]], ["subscribe"]]);
  const bare = await startNews();
  bare.socket.say("pubsub", { type: "unsubscribed", channel: "news" });
  assert.deepEqual(bare.heard, [["unsubscribed", ""]]);
});

test("a channel that has ended can be subscribed again, and closing the ended subscription does not matter", async () => {
  const { client, socket, end, news } = await startNews();
  await end("unsubscribed");
  /** @type {any[]} */
  const heard = [];
  const again = client.subscribe("news", (message) => heard.push(message), { recover: news.position ?? true, token: "u" });
  news.close();
  assert.deepEqual(socket.unanswered("subscribe").map(({ message }) => message.params), [{ channel: "news", recover: "e:5:t", token: "u" }]);
  await socket.answer("subscribe", recovery(6, [entry(6)]));
  await again.ready;
  assert.deepEqual([heard, socket.commands], [[6], ["subscribe", "subscribe"]]);
});

test("subscribing in the handler of the end works", async () => {
  const { client, socket, end, news } = await startNews();
  news.on("unsubscribed", () => client.subscribe("news", () => {}));
  await end("revoked");
  assert.deepEqual(socket.unanswered("subscribe").map(({ message }) => message.params), [{ channel: "news" }]);
});

test("the end of an earlier subscription does not end the one that replaced it", async () => {
  const { client, socket, end, news } = await startNews();
  news.close();
  /** @type {any[]} */
  const heard = [];
  const again = client.subscribe("news", (message) => heard.push(message), { token: "u" });
  again.on("unsubscribed", () => assert.fail("it has not ended"));
  await end("revoked"); // of the first, sent before the server knew that it was closed
  await socket.answer("unsubscribe", refusal("not_subscribed"));
  await socket.answer("subscribe", { type: "response", data: { expiresInS: 100 } });
  socket.bring("news", 1);
  assert.deepEqual(heard, [1]);
  again.close();
  assert.deepEqual(socket.commands, ["subscribe", "unsubscribe", "subscribe", "unsubscribe"]);
});

test("an end that crosses with a repair: expired is repaired anyway, any other ends it", async () => {
  const expired = await startNews();
  expired.socket.bring("news", 7, at(7)); // 6 is missing
  await expired.end("expired");
  await expired.socket.answer("unsubscribe", refusal("not_subscribed"));
  assert.deepEqual(expired.requests(), [{ channel: "news", recover: "e:5:t", token: "t2" }]);
  await expired.socket.answer("subscribe", recovery(7, [entry(6), entry(7)]));
  assert.deepEqual([expired.heard, expired.socket.commands.length], [[6, 7], 3]);

  const revoked = await startNews();
  revoked.socket.bring("news", 7, at(7));
  await revoked.end("revoked");
  await revoked.socket.answer("unsubscribe", refusal("not_subscribed"));
  assert.deepEqual([revoked.heard, revoked.requests()], [[["revoked", "Because: revoked"]], []]);
});

test("an end before the reply to subscribe is final, and the subscription in flight is given up", async () => {
  const { socket, end, heard, requests, clock } = await startNews();
  socket.bring("news", 7, at(7)); // 6 is missing
  await socket.answer("unsubscribe");
  assert.equal(requests().length, 1);
  await end("unsubscribed");
  await socket.answer("subscribe", recovery(7, [entry(6), entry(7)]));
  socket.bring("news", 8, at(8));
  assert.deepEqual(heard, [["unsubscribed", "Because: unsubscribed"]]);
  assert.deepEqual(socket.commands.at(-1), "unsubscribe");
  await socket.answer("unsubscribe");
  assert.equal(clock.timers, 0);
});

test("a refusal after a reconnect tells the subscription too, once; the next connection asks again", async () => {
  const { heard, reconnect } = await startNews();
  for (let round = 0; round < 2; round++) {
    const socket = await reconnect();
    await socket.answer("subscribe", refusal("not_authorized"));
  }
  assert.deepEqual(heard, [["not_authorized", "Refused: not_authorized"]]);
  const socket = await reconnect();
  await socket.answer("subscribe", recovery(6, [entry(6)]));
  assert.deepEqual(heard.slice(1), [6]);
});

test("ends of channels without a subscription, and of other services, are for listeners", async () => {
  const { client, network } = startOpen();
  /** @type {any[]} */
  const heard = [];
  client.listen("chat", ({ code }) => heard.push(code));
  network.last.say("chat", { type: "unsubscribed", channel: "lobby", code: "revoked", reason: "Revoked" });
  assert.deepEqual(heard, ["revoked"]);
});

test("closing the client leaves no timer of a token, and emits no end", async () => {
  const { client, clock, heard, errors } = await startNews();
  assert.equal(clock.timers, 1);
  client.close();
  assert.equal(clock.timers, 0);
  assert.deepEqual([heard, errors()], [[], []]);
});

test("after a move the token of the new connection counts", async () => {
  const { socket, move, clock, requests } = await startNews();
  const next = await move();
  assert.deepEqual(requests(next), [{ channel: "news", recover: "e:5:t", token: "t2" }]);
  await next.answer("subscribe", recovery(5));
  await socket.answer("info");
  assert.equal(socket.closedWith, 1000);
  await clock.pass(75_000);
  assert.deepEqual(next.unanswered("refreshSubscription").map(({ message }) => message.params.token), ["t3"]);
  assert.deepEqual(socket.commands, ["subscribe", "info"]);
});

test("during a move the position is that of the moment when the token has come", async () => {
  let give = (/** @type {string} */ _token) => {};
  let count = 0;
  const { socket, move, heard, requests } = await startNews(() => (++count === 1 ? "t1" : new Promise((resolve) => (give = resolve))));
  const next = await move();
  socket.bring("news", 6, at(6));
  give("t2");
  await settled();
  assert.deepEqual(requests(next), [{ channel: "news", recover: "e:6:t", token: "t2" }]);
  await next.answer("subscribe", recovery(7, [entry(7)]));
  await socket.answer("info");
  next.bring("news", 8, at(8));
  assert.deepEqual(heard, [6, 7, 8]);
});

test("a function that never answers delays a move only until the old node closes", async () => {
  let count = 0;
  const { client, socket, network, clock } = await startNews(() => (++count === 1 ? "t1" : new Promise(() => {})));
  /** @type {any[]} */
  const heard = [];
  client.subscribe("other", (message) => heard.push(message));
  await socket.answer("subscribe");
  socket.say("gateway", { type: "moving", graceMs: 4_000 });
  await clock.pass(1_000);
  const next = network.last;
  next.open();
  await next.answer("subscribe");
  socket.bring("other", 1);
  next.bring("other", 1);
  await clock.pass(3_000);
  next.bring("other", 2);
  socket.drop(1001);
  assert.deepEqual(heard, [1, 2]);
  assert.equal(client.state, "open");
});

test("an end on the new connection of a move comes after the messages before it", async () => {
  const { socket, move, end, heard } = await startNews();
  const next = await move();
  await next.answer("subscribe", recovery(5));
  next.bring("news", 6, at(6));
  next.bring("news", 7, at(7));
  await end("unsubscribed", next);
  socket.bring("news", 6, at(6));
  await socket.answer("info");
  next.bring("news", 8, at(8));
  assert.deepEqual(heard, [6, 7, ["unsubscribed", "Because: unsubscribed"]]);
  assert.deepEqual(next.commands, ["subscribe"]);
});

test("an end on either connection of a move ends the subscription on both", async () => {
  const { socket, move, end, heard } = await startNews();
  const next = await move();
  await end("revoked");
  await next.answer("subscribe", recovery(5));
  await next.answer("unsubscribe");
  await socket.answer("info");
  next.bring("news", 6, at(6));
  assert.deepEqual(heard, [["revoked", "Because: revoked"]]);
  assert.deepEqual(socket.commands, ["subscribe", "info"]);
});

test("a refusal on the new connection of a move ends the subscription on the old one", async () => {
  const { socket, move, heard } = await startNews();
  const next = await move();
  await next.answer("subscribe", refusal("revoked"));
  socket.bring("news", 6, at(6));
  assert.deepEqual(heard, [["revoked", "Refused: revoked"]]);
  assert.equal(socket.unanswered("unsubscribe").length, 1);
});
