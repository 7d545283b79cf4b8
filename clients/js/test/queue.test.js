import assert from "node:assert/strict";
import { test } from "node:test";

import { settled } from "../support/fakes.js";
import * as any from "../support/start.js";

const { withCode } = any;
// Clients with an identity.
const start = (/** @type {object} */ options = {}) => any.start({ token: "ann", ...options });
const startOpen = (/** @type {object} */ options = {}) => any.startOpen({ token: "ann", ...options });

/** @param {import("../support/fakes.js").FakeSocket} socket */
const publications = (socket) => socket.unanswered("publish").map(({ message }) => message.params);

test("a publication with an unknown outcome is sent again under its key, in order", async () => {
  const { client, network, clock } = startOpen();
  const outcomes = Promise.all(["a", "b", "c"].map((message) => client.publish("news", message)));
  const [first, ...unanswered] = publications(network.last);
  const { callId } = network.last.sent[0]?.message ?? {};
  network.last.say("pubsub", { type: "response", callId, data: null });
  await settled();
  network.last.drop();
  await clock.pass(1_000);
  network.last.open();
  await settled();
  assert.deepEqual(publications(network.last), unanswered);
  assert.match(first?.key, /^[0-9a-f]{32}$/);
  assert.equal(new Set([first, ...unanswered].map(({ key }) => key)).size, 3);
  await network.last.answer("publish");
  assert.deepEqual(await outcomes, [null, null, null]);
  assert.equal(client.queued, 0);
  assert.equal(clock.timers, 0);
});

test("without an identity there is no key, and a publication without a reply in time rejects", async () => {
  const { client, network, clock } = any.startOpen({ callTimeoutMs: 1_000 });
  const lost = assert.rejects(client.publish("news", 1), withCode("timeout"));
  assert.deepEqual(network.last.sent[0]?.message.params, { channel: "news", message: 1 });
  await clock.pass(1_000);
  await lost;
  const unavailable = assert.rejects(client.publish("news", 2), withCode("unavailable"));
  await network.last.answer("publish", { type: "error", message: "Unavailable", code: "unavailable", retryAfterMs: 100 });
  await unavailable;
  assert.equal(network.last.sent.length, 2);
});

test("without an identity the application's key is used on one connection only", async () => {
  const { client, network, clock } = any.startOpen({ callTimeoutMs: 1_000 });
  const lost = assert.rejects(client.publish("news", 1, { key: "mine" }), withCode("timeout"));
  await clock.pass(2_250); // no reply: sent again
  assert.equal(network.last.sent.length, 2);
  await clock.pass(1_000); // again no reply: it waits
  network.last.drop();
  await clock.pass(1_000);
  network.last.open();
  await clock.pass(1_000);
  await lost;
  assert.deepEqual(network.last.sent, []);
});

test("without an identity publications in flight are not sent again, waiting ones are sent", async () => {
  const { client, network, clock } = any.startOpen();
  const lost = assert.rejects(client.publish("news", 1), withCode("disconnected"));
  network.last.drop();
  const kept = client.publish("news", 2);
  await lost;
  await clock.pass(1_000);
  network.last.open();
  await settled();
  assert.deepEqual(publications(network.last).map(({ message }) => message), [2]);
  await network.last.answer("publish");
  await kept;
});

test("hasIdentity is for clients that are authenticated by a cookie", async () => {
  const { client, network, clock } = any.startOpen({ hasIdentity: true });
  void client.publish("news", 1).catch(() => {});
  network.last.drop();
  await clock.pass(1_000);
  network.last.open();
  await settled();
  assert.equal(publications(network.last).length, 1);
});

test("a publication without a reply is sent again on the same connection", async () => {
  const { client, network, clock } = startOpen({ callTimeoutMs: 1_000 });
  const outcome = client.publish("news", 1);
  await clock.pass(1_000); // no reply
  assert.equal(network.last.sent.length, 1);
  await clock.pass(1_250);
  const keys = network.last.sent.map(({ message }) => message.params.key);
  assert.equal(keys.length, 2);
  assert.equal(keys[0], keys[1]);
  await network.last.answer("publish");
  await outcome;
});

test("a publication that the server postpones waits, and those after it wait too", async () => {
  const { client, network, clock } = startOpen();
  const first = client.publish("news", 1);
  const later = { type: "error", message: "Too many messages", code: "rate_limited", retryAfterMs: 400 };
  await network.last.answer("publish", later);
  const second = client.publish("news", 2);
  await clock.pass(499);
  assert.deepEqual(publications(network.last), []);
  await clock.pass(1); // 400 ms, and up to half of that again for jitter
  assert.deepEqual(publications(network.last).map(({ message }) => message), [1, 2]);
  await network.last.answer("publish");
  await Promise.all([first, second]);
});

test("a refused publication rejects and is not sent again", async () => {
  const { client, network, clock } = startOpen();
  const refused = assert.rejects(client.publish("news", 1), withCode("not_authorized"));
  await network.last.answer("publish", { type: "error", message: "Not authorized", code: "not_authorized" });
  await refused;
  await clock.pass(60_000);
  assert.equal(network.last.sent.length, 1);
});

test("the application's key is used", () => {
  const { client, network } = startOpen();
  void client.publish("news", 1, { key: "order-7", service: "orders" }).catch(() => {});
  assert.equal(network.last.sent[0]?.service, "orders");
  assert.deepEqual(publications(network.last), [{ channel: "news", message: 1, key: "order-7" }]);
});

test("a publication that was never sent rejects as offline when its time is over", async () => {
  const { client, network, clock } = start({ publishMaxAgeMs: 5_000 });
  const outcome = assert.rejects(client.publish("news", 1), withCode("offline"));
  await clock.pass(5_000);
  await outcome;
  network.last.open();
  await settled();
  assert.deepEqual(network.last.sent, []);
});

test("a publication that was sent without a reply rejects as unknown when its time is over", async () => {
  const { client, network, clock } = startOpen();
  const lost = assert.rejects(client.publish("news", 1, { timeoutMs: 5_000 }), withCode("disconnected"));
  network.last.drop();
  await clock.pass(5_000);
  await lost;
  network.last.open();
  const unanswered = assert.rejects(client.publish("news", 2, { timeoutMs: 5_000 }), withCode("timeout"));
  await clock.pass(5_000);
  await unanswered;
  assert.equal(client.queued, 0);
});

test("the queue is bounded in number and in bytes, and rejects at once beyond that", async () => {
  for (const bound of [{ queueMax: 2 }, { queueMaxBytes: 400 }]) {
    const { client, network } = start(bound);
    const kept = Promise.all([client.publish("news", "ab"), client.publish("news", "cd")]);
    await assert.rejects(client.publish("news", "ef"), withCode("queue_full"));
    network.last.open();
    await settled();
    await network.last.answer("publish");
    await kept;
    void client.publish("news", "gh").catch(() => {}); // there is room again
    assert.deepEqual(publications(network.last).map(({ message }) => message), ["gh"]);
  }
});

test("a message for which the server closes is rejected, the others are sent again", async () => {
  const { client, network, clock } = startOpen();
  const small = client.publish("news", "small");
  const large = assert.rejects(client.publish("news", "x".repeat(100)), withCode("too_large"));
  network.last.drop(1009);
  await large;
  await clock.pass(1_000);
  network.last.open();
  await settled();
  assert.deepEqual(publications(network.last).map(({ message }) => message), ["small"]);
  await network.last.answer("publish");
  await small;
});

test("later changes of a message by the application have no effect", async () => {
  const { client, network } = start();
  const message = { n: 1 };
  void client.publish("news", message).catch(() => {});
  message.n = 2;
  network.last.open();
  await settled();
  assert.deepEqual(publications(network.last)[0]?.message, { n: 1 });
});

test("during a move the new connection publishes once the old one waits for no reply", async () => {
  const { client, network, clock } = startOpen();
  const first = client.publish("news", 1);
  const old = network.last;
  old.say("gateway", { type: "moving", graceMs: 4_000 });
  await clock.pass(1_000);
  const next = network.last;
  next.open();
  await settled();
  await old.answer("info");
  const second = client.publish("news", 2);
  assert.deepEqual(publications(next), []);
  await old.answer("publish");
  await first;
  assert.equal(old.closedWith, 1000);
  await settled();
  assert.deepEqual(publications(next).map(({ message }) => message), [2]);
  await next.answer("publish");
  await second;
});

test("if the old connection ends without a reply, the new one sends its publications", async () => {
  const { client, network, clock } = startOpen();
  const first = client.publish("news", 1);
  const old = network.last;
  const key = publications(old)[0]?.key;
  old.say("gateway", { type: "moving", graceMs: 4_000 });
  await clock.pass(1_000);
  network.last.open();
  await settled();
  await old.answer("info");
  old.drop(1001);
  await settled();
  assert.deepEqual(publications(network.last).map((params) => params.key), [key]);
  await network.last.answer("publish");
  await first;
});

test("at most the window's number of publications wait for replies", async () => {
  const { client, network } = startOpen();
  const outcomes = Promise.all(Array.from({ length: 600 }, (_, number) => client.publish("news", number)));
  assert.equal(publications(network.last).length, 256);
  while (client.queued > 0) await network.last.answer("publish");
  await outcomes;
  assert.deepEqual(network.last.sent.map(({ message }) => message.params.message), Array.from({ length: 600 }, (_, n) => n));
});

test("the end rejects all publications: unsent ones as closed, sent ones as unknown", async () => {
  for (const end of [(/** @type {any} */ { client }) => client.close(), (/** @type {any} */ { network }) => network.last.drop(4509)]) {
    const all = startOpen({ queueMax: 300 });
    const outcomes = Array.from({ length: 300 }, (_, n) => all.client.publish("news", n));
    const codes = Promise.all(outcomes.map((outcome) => outcome.catch((error) => error.code)));
    end(all);
    assert.deepEqual(new Set((await codes).slice(0, 256)), new Set(["disconnected"]));
    assert.deepEqual(new Set((await codes).slice(256)), new Set(["closed"]));
    await assert.rejects(all.client.publish("news", 1), withCode("closed"));
    assert.equal(all.clock.timers, 0);
  }
});
