import assert from "node:assert/strict";
import { test } from "node:test";

import { connect, msgpack } from "../src/snorky.js";
import { FakeNetwork, settled } from "../support/fakes.js";
import { start, startOpen, withCode } from "../support/start.js";

test("a call resolves with the data of its own reply, in any order", async () => {
  const { client, network } = startOpen();
  const first = client.call("rpc", "first", { a: 1 });
  const second = client.call("rpc", "second");
  await network.last.answer("second", { type: "response", data: 2 });
  await network.last.answer("first", { type: "response", data: { x: 1 } });
  assert.deepEqual(await Promise.all([first, second]), [{ x: 1 }, 2]);
  const { callId } = network.last.sent[0]?.message;
  assert.deepEqual(network.last.sent[0], { service: "rpc", message: { command: "first", params: { a: 1 }, callId } });
});

test("a refused call rejects with the server's text, code and delay", async () => {
  const { client, network } = startOpen();
  const call = assert.rejects(client.call("rpc", "much"), {
    message: "Slow down", code: "rate_limited", retryAfterMs: 250,
  });
  await network.last.answer("much", { type: "error", message: "Slow down", code: "rate_limited", retryAfterMs: 250 });
  await call;
});

test("an error from a server without codes has the code error", async () => {
  const { client, network } = startOpen();
  const call = assert.rejects(client.call("rpc", "x"), { message: "Unknown command", code: "error", retryAfterMs: null });
  await network.last.answer("x", { type: "error", message: "Unknown command" });
  await call;
});

test("a call without a reply times out, and a late reply is ignored", async () => {
  const { client, network, clock } = startOpen();
  const call = assert.rejects(client.call("rpc", "slow", {}, { timeoutMs: 100 }), withCode("timeout"));
  await clock.pass(100);
  await call;
  await network.last.answer("slow");
  assert.equal(client.state, "open");
  assert.equal(clock.timers, 0);
});

test("calls without a connection wait, and are sent in order after the subscriptions", async () => {
  const { client, network } = start();
  client.subscribe("news", () => {});
  void client.publish("news", 1);
  void client.publish("news", 2);
  assert.equal(network.last.sent.length, 0);
  network.last.open();
  await settled();
  assert.deepEqual(network.last.commands, ["subscribe", "publish", "publish"]);
  assert.deepEqual(network.last.sent.slice(1).map(({ message }) => message.params.message), [1, 2]);
});

test("a call without a connection in time rejects as offline and is never sent", async () => {
  const { client, network, clock } = start();
  const call = assert.rejects(client.call("rpc", "x", {}, { timeoutMs: 300 }), withCode("offline"));
  await clock.pass(300);
  await call;
  network.last.open();
  await settled();
  assert.deepEqual(network.last.sent, []);
});

test("at most waitingCallsMax calls wait", async () => {
  const { client, network } = start({ waitingCallsMax: 1 });
  const first = client.call("rpc", "x");
  await assert.rejects(client.call("rpc", "y"), withCode("offline"));
  network.last.open();
  await settled();
  await network.last.answer("x");
  await first;
});

test("calls in flight reject when the connection ends and are not sent again", async () => {
  const { client, network, clock } = startOpen();
  const call = assert.rejects(client.call("rpc", "x"), withCode("disconnected"));
  network.last.drop();
  await call;
  await clock.pass(1_000);
  network.last.open();
  await settled();
  assert.equal(network.sockets.length, 2);
  assert.deepEqual(network.last.sent, []);
});

test("messages reach every handler of their channel, with the server's information about them", async () => {
  const { client, network } = startOpen();
  /** @type {any[]} */
  const heard = [];
  client.subscribe({ b: 1, a: [2] }, (message, info) => heard.push(["one", message, info]));
  client.subscribe({ a: [2], b: 1.0 }, (message) => heard.push(["two", message]));
  client.subscribe("other", () => heard.push("other"));
  assert.deepEqual(network.last.commands, ["subscribe", "subscribe"]);
  network.last.bring({ a: [2], b: 1 }, "m", { offset: 7, position: "e:7:t" });
  assert.deepEqual(heard, [
    ["one", "m", { service: "pubsub", channel: { b: 1, a: [2] }, offset: 7, position: "e:7:t" }],
    ["two", "m"],
  ]);
});

test("the second handler survives the first one leaving; the last one unsubscribes", async () => {
  const { client, network } = startOpen();
  /** @type {string[]} */
  const heard = [];
  const first = client.subscribe("news", () => heard.push("first"));
  const second = client.subscribe("news", () => heard.push("second"));
  first.close();
  first.close();
  network.last.bring("news", 1);
  assert.deepEqual(heard, ["second"]);
  assert.deepEqual(network.last.commands, ["subscribe"]);
  second.close();
  assert.deepEqual(network.last.commands, ["subscribe", "unsubscribe"]);
  network.last.bring("news", 2);
  assert.deepEqual(heard, ["second"]);
});

test("subscribing while an unsubscribe is in flight sends a new subscribe", async () => {
  const { client, network } = startOpen();
  client.subscribe("news", () => {}).close();
  const again = client.subscribe("news", () => {});
  assert.deepEqual(network.last.commands, ["subscribe", "unsubscribe", "subscribe"]);
  await network.last.answer("subscribe");
  await again.ready;
});

test("ready resolves on confirmation and rejects on refusal, which also emits an event", async () => {
  const { client, network, events } = startOpen();
  const good = client.subscribe("good", () => {});
  await network.last.answer("subscribe");
  await good.ready;
  const bad = client.subscribe("bad", () => {});
  await network.last.answer("subscribe", { type: "error", message: "Not authorized", code: "not_authorized" });
  await assert.rejects(bad.ready, withCode("not_authorized"));
  const [, detail] = events.find(([event]) => event === "error");
  assert.deepEqual([detail.service, detail.channel, detail.error.code], ["pubsub", "bad", "not_authorized"]);
});

test("a refusal with retryAfterMs is retried, not reported", async () => {
  const { client, network, clock, events } = startOpen();
  const news = client.subscribe("news", () => {});
  await network.last.answer("subscribe", { type: "error", message: "Later", code: "rate_limited", retryAfterMs: 200 });
  await clock.pass(299);
  assert.deepEqual(network.last.unanswered("subscribe"), []);
  await clock.pass(1); // 200 ms, and half of that again for jitter
  await network.last.answer("subscribe");
  await news.ready;
  assert.deepEqual(events.filter(([event]) => event === "error"), []);
});

test("the error Already subscribed counts as confirmation", async () => {
  const { client, network } = startOpen();
  const news = client.subscribe("news", () => {});
  await network.last.answer("subscribe", { type: "error", message: "Already subscribed" });
  await news.ready;
});

test("after a reconnect all open subscriptions are requested again, closed ones are not", async () => {
  const { client, network, clock } = startOpen();
  /** @type {unknown[]} */
  const heard = [];
  client.subscribe("kept", (message) => heard.push(message));
  client.subscribe("left", () => {}).close();
  client.subscribe("refused", () => {}).ready.catch(() => {});
  network.last.drop();
  await clock.pass(250);
  network.last.open();
  assert.deepEqual(network.last.sent.map(({ message }) => message.params.channel), ["kept", "refused"]);
  await network.last.answer("subscribe");
  network.last.bring("kept", "again");
  assert.deepEqual(heard, ["again"]);
});

test("retries back off with jitter, which a stable connection resets", async () => {
  const { network, clock, events } = startOpen({ backoffBaseMs: 100, backoffMaxMs: 1_000 });
  const delays = () => events.filter(([event]) => event === "reconnecting").map(([, { delayMs }]) => delayMs);
  for (let attempt = 0; attempt < 5; attempt++) {
    network.last.drop();
    await clock.pass(1_000);
  }
  assert.deepEqual(delays(), [50, 100, 200, 400, 500]);
  network.last.open(); // opened and dropped at once: the backoff is not reset
  network.last.drop();
  assert.equal(delays().at(-1), 500);
  await clock.pass(1_000);
  network.last.open();
  await clock.pass(5_000);
  network.last.drop();
  assert.equal(delays().at(-1), 50);
});

test("a socket that does not open in time is replaced by another", async () => {
  const { network, clock, events } = start({ connectTimeoutMs: 1_000 });
  await clock.pass(1_250);
  assert.equal(network.sockets.length, 2);
  assert.equal(network.sockets[0]?.closedWith, 1005);
  network.sockets[0]?.open(); // too late
  assert.deepEqual(events.map(([event]) => event), ["reconnecting"]);
});

for (const code of [4500, 4501, 4509, 4999]) {
  test(`close code ${code} ends the client`, async () => {
    const { client, network, clock, events } = startOpen();
    const call = assert.rejects(client.call("rpc", "x"), withCode("disconnected"));
    network.last.drop(code, "no");
    await call;
    await clock.pass(100_000);
    assert.equal(network.sockets.length, 1);
    assert.equal(client.state, "closed");
    assert.deepEqual(events.at(-1), ["close", { code, reason: "no", willReconnect: false }]);
    await assert.rejects(client.call("rpc", "x"), withCode("closed"));
  });
}

for (const code of [1000, 1001, 1006, 1011, 4008, 4010, 4499, 5000]) {
  test(`after close code ${code} the client reconnects`, async () => {
    const { network, clock, events } = startOpen();
    network.last.drop(code);
    assert.deepEqual(events.find(([event]) => event === "close")?.[1], { code, reason: "", willReconnect: true });
    await clock.pass(250);
    assert.equal(network.sockets.length, 2);
  });
}

test("close ends everything, at once and permanently", async () => {
  const { client, network, clock, events } = startOpen();
  const news = client.subscribe("news", () => assert.fail("heard after the end"));
  const call = assert.rejects(client.call("rpc", "x"), withCode("disconnected"));
  client.close();
  client.close();
  await call;
  await assert.rejects(news.ready, withCode("closed"));
  network.last.bring("news", 1);
  network.last.drop(1000);
  await clock.pass(100_000);
  assert.equal(network.last.closedWith, 1000);
  assert.equal(network.sockets.length, 1);
  assert.equal(clock.timers, 0);
  assert.deepEqual(events.filter(([event]) => event === "close").length, 1);
});

test("close while offline rejects waiting calls and stops connecting", async () => {
  const { client, network, clock } = start();
  const call = assert.rejects(client.call("rpc", "x"), withCode("closed"));
  network.last.drop();
  client.close();
  await call;
  await clock.pass(100_000);
  assert.equal(network.sockets.length, 1);
});

test("closing in any handler stops the client", async () => {
  for (const event of /** @type {const} */ (["open", "close", "reconnecting"])) {
    const { client, network, clock } = start();
    client.on(event, () => client.close());
    network.last.open();
    if (event !== "open") network.last.drop();
    await clock.pass(100_000);
    assert.equal(network.sockets.length, 1, event);
    assert.equal(client.state, "closed", event);
  }
});

test("messages of unknown services, channels and calls are ignored", async () => {
  const { client, network, events } = startOpen();
  client.subscribe("news", () => assert.fail("not ours"));
  network.last.say("unknown", { type: "message", channel: "news", message: 1 });
  network.last.say("unknown", null);
  network.last.say("pubsub", { type: "message", channel: "other", message: 1 });
  network.last.say("pubsub", { type: "joined", channel: "news" });
  network.last.say("pubsub", { type: "response", callId: 99, data: null });
  assert.deepEqual(events.map(([event]) => event), ["open"]);
});

test("listen receives the notifications of a service", async () => {
  const { client, network } = startOpen();
  /** @type {unknown[]} */
  const heard = [];
  const stop = client.listen("chat", (message) => heard.push(message));
  network.last.say("chat", { type: "presence", status: "joined" });
  stop();
  network.last.say("chat", { type: "presence", status: "left" });
  assert.deepEqual(heard, [{ type: "presence", status: "joined" }]);
});

test("invalid messages are reported, and the connection stays open", async () => {
  const { client, network, events } = startOpen();
  network.last.onmessage({ data: "{" });
  network.last.onmessage({ data: new ArrayBuffer(1) });
  network.last.onmessage({ data: "[]" });
  network.last.onmessage({ data: "null" });
  network.last.say("gateway", { type: "error", callId: null, message: "Invalid message", code: "invalid_message" });
  const errors = events.filter(([event]) => event === "error").map(([, { error }]) => error.code);
  assert.deepEqual(errors, Array(5).fill("invalid_message"));
  assert.equal(client.state, "open");
});

test("an exception in a handler becomes an uncaught error and does not affect other handlers", async () => {
  const { client, network } = startOpen();
  const bug = new Error("a bug of the application");
  /** @type {unknown[]} */
  const heard = [];
  /** @type {unknown[]} */
  const uncaught = [];
  const others = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.once("uncaughtException", (error) => uncaught.push(error));
  client.subscribe("news", () => {
    throw bug;
  });
  client.subscribe("news", (message) => heard.push(message));
  network.last.bring("news", 1);
  await settled();
  for (const listener of others) process.on("uncaughtException", listener);
  assert.deepEqual(heard, [1]);
  assert.deepEqual(uncaught, [bug]);
});

test("a silent connection is probed, and closed if nothing arrives", async () => {
  const { network, clock, events } = startOpen({ probeAfterMs: 30_000, probeTimeoutMs: 10_000 });
  await clock.pass(20_000);
  network.last.say("unknown", {}); // any message is a sign of life
  await clock.pass(29_999);
  assert.deepEqual(network.last.commands, []);
  await clock.pass(1);
  assert.deepEqual(network.last.commands, ["info"]);
  await network.last.answer("info", { type: "error", message: "Unknown service" }); // so is an error
  await clock.pass(40_000);
  assert.deepEqual(network.last.commands, ["info", "info"]);
  assert.equal(network.sockets.length, 1);
  await clock.pass(10_000 + 250);
  assert.deepEqual(events.find(([event]) => event === "close")?.[1].code, 1006);
  assert.equal(network.sockets.length, 2);
});

test("MessagePack connections offer their subprotocol and use the encoding in both directions", async () => {
  const { client, network } = startOpen({ encoding: msgpack });
  assert.deepEqual(network.last.protocols, ["snorky.msgpack"]);
  assert.equal(network.last.binaryType, "arraybuffer");
  /** @type {unknown[]} */
  const heard = [];
  client.subscribe("news", (message) => heard.push(message));
  assert.deepEqual(network.last.sent[0]?.message.params, { channel: "news" });
  network.last.bring("news", { x: 1.5, y: [null] });
  assert.deepEqual(heard, [{ x: 1.5, y: [null] }]);
});

test("without a valid WebSocket, encoding or URL, connect throws an error that names it", () => {
  const { WebSocket } = new FakeNetwork();
  assert.throws(() => connect("wss://example.org", { WebSocket, encoding: /** @type {any} */ ("msgpack") }), /msgpack/);
  assert.throws(() => connect("/ws", { WebSocket }), TypeError);
  if (globalThis.WebSocket === undefined) assert.throws(() => connect("wss://example.org"), /WebSocket/);
});

test("an http URL is converted to its ws URL", () => {
  const { WebSocket, sockets } = new FakeNetwork();
  connect(new URL("https://example.org/ws"), { WebSocket }).close();
  assert.equal(sockets[0]?.url, "wss://example.org/ws");
  assert.deepEqual(sockets[0]?.protocols, ["snorky.json"]);
});
