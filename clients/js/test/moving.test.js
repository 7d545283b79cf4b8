import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../src/snorky.js";
import { FakeClock, FakeNetwork, settled } from "../support/fakes.js";
import { unknown } from "../support/start.js";

/** A client with one confirmed subscription whose node announced that it leaves. */
async function startMoving() {
  const network = new FakeNetwork();
  const clock = new FakeClock();
  const client = connect("wss://example.org/ws", {
    fetch: unknown,
    WebSocket: network.WebSocket, clock, random: () => 0.5, probeAfterMs: 0,
  });
  /** @type {any[]} */
  const heard = [];
  /** @type {any[]} */
  const events = [];
  for (const event of /** @type {const} */ (["open", "close", "reconnecting", "moving"])) {
    client.on(event, (detail) => events.push([event, detail]));
  }
  client.subscribe("news", (message) => heard.push(message));
  const old = network.last;
  old.open();
  await old.answer("subscribe");
  old.say("gateway", { type: "moving", graceMs: 4_000 });
  const dial = async () => {
    await clock.pass(1_000);
    const next = network.last;
    assert.notEqual(next, old);
    return next;
  };
  return { client, network, clock, heard, events, old, dial };
}

test("during a move the client connects within half of the grace period and stays on the old connection meanwhile", async () => {
  const { client, network, clock, old, heard, events } = await startMoving();
  await clock.pass(999);
  assert.equal(network.sockets.length, 1);
  await clock.pass(1);
  assert.equal(network.sockets.length, 2);
  old.bring("news", 1);
  void client.publish("news", 2).catch(() => {});
  assert.deepEqual(heard, [1]);
  assert.deepEqual(old.commands, ["subscribe", "publish"]);
  assert.equal(client.state, "open");
  assert.deepEqual(events.map(([event]) => event), ["open", "moving"]);
});

test("the old connection delivers until the new one's subscriptions are confirmed and a fence has passed", async () => {
  const { client, old, dial, events } = await startMoving();
  const next = await dial();
  next.open();
  await settled();
  assert.deepEqual(next.commands, ["subscribe"]);
  assert.equal(old.closedWith, undefined);
  assert.deepEqual(old.unanswered("info"), []);
  await next.answer("subscribe");
  assert.equal(old.closedWith, undefined);
  await old.answer("info");
  assert.equal(old.closedWith, 1000);
  assert.deepEqual(events.at(-1), ["open", { isMove: true, isResync: false }]);
  assert.equal(client.state, "open");
  void client.call("rpc", "x").catch(() => {});
  assert.deepEqual(next.commands, ["subscribe", "x"]);
});

test("during the overlap no message is lost or duplicated, and the order is kept", async () => {
  const { old, dial, heard } = await startMoving();
  const next = await dial();
  old.bring("news", 1);
  next.open();
  old.bring("news", 2);
  await next.answer("subscribe");
  next.bring("news", 3); // the new node is ahead ...
  next.bring("news", 4);
  old.bring("news", 3);
  assert.deepEqual(heard, [1, 2, 3]);
  await old.answer("info");
  assert.deepEqual(heard, [1, 2, 3, 4]);
  old.bring("news", 4); // ... and the old one is ignored
  next.bring("news", 5);
  assert.deepEqual(heard, [1, 2, 3, 4, 5]);
});

test("a new node that lags behind the old one causes no duplicates", async () => {
  const { old, dial, heard } = await startMoving();
  const next = await dial();
  next.open();
  await next.answer("subscribe");
  for (const message of [1, 2, 3]) old.bring("news", message);
  next.bring("news", 2);
  await old.answer("info");
  next.bring("news", 3);
  next.bring("news", 4);
  assert.deepEqual(heard, [1, 2, 3, 4]);
});

test("an equal message after the move is delivered", async () => {
  const { old, dial, heard, clock } = await startMoving();
  const next = await dial();
  next.open();
  await next.answer("subscribe");
  old.bring("news", "tick");
  await old.answer("info");
  await clock.pass(1_000);
  next.bring("news", "tick");
  assert.deepEqual(heard, ["tick", "tick"]);
});

test("of several equal messages none is lost", async () => {
  const { old, dial, heard } = await startMoving();
  const next = await dial();
  next.open();
  old.bring("news", "tick"); // before the subscription on the new node
  await next.answer("subscribe");
  old.bring("news", "tick");
  next.bring("news", "tick");
  await old.answer("info");
  next.bring("news", "tick");
  assert.equal(heard.length, 3);
});

test("calls in flight on the old connection get their replies before it closes", async () => {
  const { client, old, dial } = await startMoving();
  const call = client.call("rpc", "long");
  const next = await dial();
  next.open();
  await next.answer("subscribe");
  await old.answer("info");
  assert.equal(old.closedWith, undefined);
  await old.answer("long", { type: "response", data: "done" });
  assert.equal(await call, "done");
  assert.equal(old.closedWith, 1000);
});

test("subscribing and unsubscribing during a move applies to both connections", async () => {
  const { client, old, dial, heard } = await startMoving();
  const next = await dial();
  next.open();
  const late = client.subscribe("late", (message) => heard.push(["late", message]));
  const gone = client.subscribe("gone", () => assert.fail("gone"));
  gone.close();
  await next.answer("subscribe");
  assert.deepEqual(old.unanswered("subscribe").map(({ message }) => message.params.channel), ["late", "gone"]);
  await old.answer("subscribe");
  await late.ready;
  await old.answer("info");
  next.bring("late", 1);
  assert.deepEqual(heard, [["late", 1]]);
  assert.deepEqual(next.unanswered("unsubscribe").map(({ message }) => message.params.channel), ["gone"]);
});

test("if the old node does not reply to the fence, the move completes anyway", async () => {
  const { clock, old, dial } = await startMoving();
  const next = await dial();
  next.open();
  await next.answer("subscribe");
  await clock.pass(1_000);
  assert.equal(old.closedWith, 1000);
});

test("if the old connection ends first, the new one takes over at once", async () => {
  const { old, dial, heard, events } = await startMoving();
  const next = await dial();
  next.open();
  next.bring("news", 1);
  old.drop(1001);
  assert.deepEqual(heard, [1]);
  await next.answer("subscribe");
  next.bring("news", 2);
  assert.deepEqual(heard, [1, 2]);
  assert.deepEqual(events.map(([event]) => event), ["open", "moving", "open"]);
});

test("if the old connection ends while the new one is connecting, the client waits for the new one", async () => {
  const { client, network, old, dial, events } = await startMoving();
  const next = await dial();
  old.drop(1001);
  assert.equal(client.state, "connecting");
  next.open();
  assert.equal(client.state, "open");
  assert.deepEqual(next.commands, ["subscribe"]);
  assert.equal(network.sockets.length, 2);
  assert.deepEqual(events.map(([event]) => event), ["open", "moving", "close", "open"]);
});

test("a failed new connection is retried while the old one delivers", async () => {
  const { client, network, clock, old, dial, events } = await startMoving();
  (await dial()).drop(1006);
  assert.equal(client.state, "open");
  assert.deepEqual(events.map(([event]) => event), ["open", "moving"]);
  await clock.pass(250);
  assert.equal(network.sockets.length, 3);
  network.last.open();
  await network.last.answer("subscribe");
  await old.answer("info");
  assert.equal(old.closedWith, 1000);
});

test("if the new node leaves too, the next move starts once this one has completed", async () => {
  const { network, clock, old, dial, heard } = await startMoving();
  const second = await dial();
  second.open();
  second.say("gateway", { type: "moving", graceMs: 2_000 });
  await second.answer("subscribe");
  await old.answer("info");
  second.bring("news", 1);
  await clock.pass(500);
  assert.equal(network.sockets.length, 3);
  network.last.open();
  await network.last.answer("subscribe");
  await second.answer("info");
  network.last.bring("news", 2);
  assert.deepEqual(heard, [1, 2]);
  assert.equal(second.closedWith, 1000);
});

test("closing during a move closes both connections", async () => {
  const { client, clock, old, dial } = await startMoving();
  const next = await dial();
  next.open();
  await next.answer("subscribe", { type: "error", message: "Later", code: "rate_limited", retryAfterMs: 60_000 });
  client.close();
  await clock.pass(1_000);
  assert.deepEqual([old.closedWith, next.closedWith], [1000, 1000]);
  assert.equal(clock.timers, 0);
});

test("a terminal close code on the new connection ends the old one too", async () => {
  const { client, old, dial } = await startMoving();
  (await dial()).drop(4501, "bad token");
  assert.equal(client.state, "closed");
  assert.equal(old.closedWith, 1000);
});
