import assert from "node:assert/strict";
import { test } from "node:test";

import { settled } from "../support/fakes.js";
import { start, startOpen, withCode } from "../support/start.js";

const at = (/** @type {number} */ offset, epoch = "e") => ({ offset, position: `${epoch}:${offset}:t${offset}` });
const entry = (/** @type {number} */ offset, epoch = "e") => ({ message: offset, ...at(offset, epoch) });
const recovery = (/** @type {any} */ position, recovered = true, /** @type {any[]} */ messages = []) => ({
  type: "response", data: { position, recovered, messages },
});

/**
 * A client whose channel "news" has the position e:5, and the messages and events it receives.
 *
 * @param {object} [first] the reply to the first subscription
 */
async function startRecovering(first = recovery("e:5:t5")) {
  const all = startOpen();
  const { client, network, clock } = all;
  /** @type {any[]} */
  const heard = [];
  const news = client.subscribe("news", (message) => heard.push(message), { recover: true });
  news.on("gap", (gap) => heard.push(["gap", gap.cause, gap.position]));
  news.on("recovered", ({ count }) => heard.push(["recovered", count]));
  await network.last.answer("subscribe", first);
  const reconnect = async () => {
    network.last.drop();
    await clock.pass(1_000);
    network.last.open();
    await settled();
    return network.last;
  };
  return { ...all, news, heard, reconnect };
}

test("the first subscription requests recovery from now on, and has a position", async () => {
  const { network, news, heard } = await startRecovering();
  assert.deepEqual(network.last.sent[0]?.message.params, { channel: "news", recover: true });
  await news.ready;
  assert.equal(news.position, "e:5:t5");
  network.last.bring("news", 6, at(6));
  assert.equal(news.position, "e:6:t6");
  assert.deepEqual(heard, [6]);
});

test("after a reconnect the client recovers from its position, and missed messages come first", async () => {
  const { network, heard, reconnect, news } = await startRecovering();
  network.last.bring("news", 6, at(6));
  const socket = await reconnect();
  assert.deepEqual(socket.sent[0]?.message.params, { channel: "news", recover: "e:6:t6" });
  socket.bring("news", 9, at(9)); // live, before the reply
  await socket.answer("subscribe", recovery("e:8:t8", true, [entry(7), entry(8)]));
  socket.bring("news", 10, at(10));
  assert.deepEqual(heard, [6, 7, 8, ["recovered", 2], 9, 10]);
  assert.equal(news.position, "e:10:t10");
});

test("a message that is in the reply and arrives live is delivered once", async () => {
  const { heard, reconnect } = await startRecovering();
  const socket = await reconnect();
  socket.bring("news", 6, at(6));
  socket.bring("news", 7, at(7));
  await socket.answer("subscribe", recovery("e:6:t6", true, [entry(6)]));
  socket.bring("news", 7, at(7));
  assert.deepEqual(heard, [6, ["recovered", 1], 7]);
});

test("a failed recovery is reported as a gap, and the channel continues from the new position", async () => {
  const { heard, reconnect, news } = await startRecovering();
  let socket = await reconnect();
  await socket.answer("subscribe", recovery("f:2:t2", false));
  assert.equal(news.position, "f:2:t2");
  socket.bring("news", 3, at(3, "f"));
  assert.deepEqual(heard, [["gap", "recovery", "f:2:t2"], 3]);
  socket = await reconnect();
  assert.equal(socket.sent[0]?.message.params.recover, "f:3:t3");
});

test("a gap notice of the server is an event, and offsets continue from its position", async () => {
  const { network, heard } = await startRecovering();
  network.last.say("pubsub", { type: "gap", channel: "news", position: "g:0:t" });
  network.last.bring("news", 1, at(1, "g"));
  assert.deepEqual(heard, [["gap", "live", "g:0:t"], 1]);
});

test("if messages are missing, later ones are not delivered before recovery", async () => {
  const { network, heard } = await startRecovering();
  const socket = network.last;
  socket.bring("news", 7, at(7));
  socket.bring("news", 8, at(8));
  assert.deepEqual(heard, []);
  await socket.answer("unsubscribe");
  assert.deepEqual(socket.unanswered("subscribe").map(({ message }) => message.params.recover), ["e:5:t5"]);
  await socket.answer("subscribe", recovery("e:8:t8", true, [6, 7, 8].map((offset) => entry(offset))));
  socket.bring("news", 9, at(9));
  assert.deepEqual(heard, [6, 7, 8, ["recovered", 3], 9]);
});

test("late messages of an ended subscription do not count for the new one", async () => {
  const { network, heard } = await startRecovering();
  const socket = network.last;
  socket.bring("news", 7, at(7));
  socket.say("pubsub", { type: "gap", channel: "news", position: "f:0:t" });
  await socket.answer("unsubscribe");
  await socket.answer("subscribe", recovery("f:1:t1", false));
  socket.bring("news", 2, at(2, "f"));
  assert.deepEqual(heard, [["gap", "recovery", "f:1:t1"], 2]);
});

for (const [what, next] of /** @type {const} */ ([
  ["another epoch", { offset: 6, position: "f:6:t6" }],
  ["another entry at the offset that was last", { offset: 5, position: "e:5:other" }],
])) {
  test(`${what} also means that messages are missing`, async () => {
    const { network, heard } = await startRecovering();
    network.last.bring("news", "x", next);
    assert.deepEqual(heard, []);
    await network.last.answer("unsubscribe");
    await network.last.answer("subscribe", recovery("f:6:t6", false));
    assert.deepEqual(heard, [["gap", "recovery", "f:6:t6"]]);
  });
}

test("messages without a position are delivered as they arrive", async () => {
  const { network, heard, news } = await startRecovering();
  network.last.bring("news", "bare");
  network.last.bring("news", 6, at(6));
  assert.deepEqual(heard, ["bare", 6]);
  assert.equal(news.position, "e:6:t6");
});

test("a tombstone advances the position, and is not delivered", async () => {
  const { network, heard, news, reconnect } = await startRecovering();
  network.last.bring("news", null, { ...at(6), tombstone: true });
  network.last.bring("news", 7, at(7));
  assert.equal(news.position, "e:7:t7");
  const socket = await reconnect();
  await socket.answer("subscribe", recovery("e:9:t9", true, [{ ...entry(8), message: null, tombstone: true }, entry(9)]));
  assert.deepEqual(heard, [7, 9, ["recovered", 1]]);
});

test("messages buffered until a reply are bounded; beyond that the client reconnects", async () => {
  const { heard, reconnect, events } = await startRecovering();
  const socket = await reconnect();
  for (let offset = 6; offset <= 10_005; offset++) socket.bring("news", offset, at(offset));
  assert.equal(socket.closedWith, undefined);
  socket.bring("news", 10_006, at(10_006));
  assert.equal(socket.closedWith, 1000);
  assert.deepEqual(heard, []);
  assert.equal(events.at(-1)[0], "reconnecting");
});

test("a channel without history is delivered; each reconnect is a gap, the first connection is not", async () => {
  const { network, heard, news, reconnect } = await startRecovering(recovery(null, false));
  assert.equal(news.position, null);
  network.last.bring("news", "a");
  const socket = await reconnect();
  await socket.answer("subscribe", recovery(null, false));
  socket.bring("news", "b");
  assert.deepEqual(heard, ["a", ["gap", "recovery", null], "b"]);
});

test("a saved position is recovered from, and one that is no longer available is reported", async () => {
  const { client, network } = startOpen();
  /** @type {any[]} */
  const heard = [];
  for (const channel of ["kept", "lost"]) {
    const subscription = client.subscribe(channel, (message) => heard.push(message), { recover: "e:3:t3" });
    subscription.on("gap", ({ position }) => heard.push(["gap", position]));
  }
  const [kept, lost] = network.last.unanswered("subscribe");
  assert.equal(kept?.message.params.recover, "e:3:t3");
  network.last.say("pubsub", { ...recovery("e:4:t4", true, [entry(4)]), callId: kept?.message.callId });
  network.last.say("pubsub", { ...recovery("f:0:t0", false), callId: lost?.message.callId });
  await settled();
  assert.deepEqual(heard, [4, ["gap", "f:0:t0"]]);
});

test("a position is rejected if the channel has handlers already; null is a page's first visit", async () => {
  const { client, network } = startOpen();
  client.subscribe("news", () => {}, { recover: null });
  assert.equal(network.last.sent[0]?.message.params.recover, true);
  assert.throws(() => client.subscribe("news", () => {}, { recover: "e:3:t3" }), TypeError);
});

test("a second handler that recovers makes the channel recover", async () => {
  const { client, network } = startOpen();
  client.subscribe("news", () => {});
  await network.last.answer("subscribe");
  const second = client.subscribe("news", () => {}, { recover: true });
  await network.last.answer("unsubscribe");
  await network.last.answer("subscribe", recovery("e:1:t1"));
  assert.equal(second.position, "e:1:t1");
});

test("a subscription without a reply is ended and requested again", async () => {
  const { client, network, clock } = startOpen({ callTimeoutMs: 1_000 });
  /** @type {any[]} */
  const heard = [];
  const news = client.subscribe("news", (message) => heard.push(message), { recover: "e:5:t5" });
  await clock.pass(1_000);
  network.last.bring("news", 6, at(6));
  await clock.pass(1_500);
  const again = network.last.unanswered("subscribe").at(-1);
  network.last.say("pubsub", { type: "error", callId: again?.message.callId, message: "Already subscribed" });
  await settled();
  await network.last.answer("unsubscribe");
  await clock.pass(0);
  await network.last.answer("subscribe", recovery("e:6:t6", true, [entry(6)]));
  await news.ready;
  assert.deepEqual(heard, [6]);
});

test("the refusal of a server without recovery is reported", async () => {
  const { client, network } = startOpen();
  const news = client.subscribe("news", () => {}, { recover: true });
  await network.last.answer("subscribe", { type: "error", message: "Invalid params", code: "invalid_params" });
  await assert.rejects(news.ready, withCode("invalid_params"));
});

test("closing the subscription during a replay ends the replay", async () => {
  const { client, network, clock } = startOpen();
  /** @type {any[]} */
  const heard = [];
  const news = client.subscribe("news", (message) => (heard.push(message), news.close()), { recover: "e:0:t0" });
  await network.last.answer("subscribe", recovery("e:2:t2", true, [entry(1), entry(2)]));
  assert.deepEqual(heard, [1]);
  assert.equal(clock.timers, 1); // of the unsubscription
});

test("a resync close is reported with the next connection, and positions are kept", async () => {
  const { network, clock, events } = await startRecovering();
  network.last.drop(4010);
  await clock.pass(1_000);
  network.last.open();
  await settled();
  assert.deepEqual(events.at(-1), ["open", { isMove: false, isResync: true }]);
  assert.equal(network.last.sent[0]?.message.params.recover, "e:5:t5");
});

// -- moves -------------------------------------------------------------------------------------------------------

/** As `startRecovering`, but the node announced that it leaves, and the next connection is open. */
async function startMoving() {
  const all = await startRecovering();
  const old = all.network.last;
  old.say("gateway", { type: "moving", graceMs: 4_000 });
  await all.clock.pass(1_000);
  const next = all.network.last;
  next.open();
  await settled();
  return { ...all, old, next };
}

test("a move recovers on the new connection, and offsets identify messages of the old one", async () => {
  const { old, next, heard } = await startMoving();
  assert.equal(next.sent[0]?.message.params.recover, "e:5:t5");
  old.bring("news", 6, at(6));
  next.bring("news", 8, at(8));
  await next.answer("subscribe", recovery("e:7:t7", true, [entry(6), entry(7)]));
  next.bring("news", 9, at(9));
  old.bring("news", 7, at(7));
  assert.deepEqual(heard, [6, 7]);
  await old.answer("info");
  assert.deepEqual(heard, [6, 7, ["recovered", 0], 8, 9]);
});

test("an old node that lags behind causes no loss", async () => {
  const { old, next, heard } = await startMoving();
  await next.answer("subscribe", recovery("e:6:t6", true, [entry(6)]));
  await old.answer("info");
  next.bring("news", 7, at(7));
  assert.deepEqual(heard, [6, ["recovered", 1], 7]);
});

test("if the old node reported a gap meanwhile, the client recovers on the new one from after that gap", async () => {
  const { old, next, heard } = await startMoving();
  await next.answer("subscribe", recovery("e:5:t5"));
  next.bring("news", 6, at(6));
  old.bring("news", 6, at(6));
  old.say("pubsub", { type: "gap", channel: "news", position: "f:0:t" });
  old.bring("news", 1, at(1, "f"));
  next.say("pubsub", { type: "gap", channel: "news", position: "f:0:t" });
  next.bring("news", 1, at(1, "f"));
  await old.answer("info");
  await next.answer("unsubscribe");
  assert.deepEqual(next.unanswered("subscribe").map(({ message }) => message.params.recover), ["f:1:t1"]);
  await next.answer("subscribe", recovery("f:1:t1"));
  next.bring("news", 2, at(2, "f"));
  assert.deepEqual(heard, [6, ["gap", "live", "f:0:t"], 1, ["recovered", 0], 2]);
});

test("if the new node could not recover, it is asked again from the old one's last position", async () => {
  const { old, next, heard } = await startMoving();
  old.bring("news", 6, at(6));
  await next.answer("subscribe", recovery("e:400:t400", false));
  old.bring("news", 7, at(7));
  await old.answer("info");
  await next.answer("unsubscribe");
  assert.deepEqual(next.unanswered("subscribe").map(({ message }) => message.params.recover), ["e:7:t7"]);
  assert.deepEqual(heard, [6, 7]);
});

test("if the old connection ends before the new one's reply, no message is delivered twice", async () => {
  const { old, next, heard } = await startMoving();
  old.bring("news", 6, at(6));
  old.drop(1001);
  await next.answer("subscribe", recovery("e:7:t7", true, [entry(6), entry(7)]));
  assert.deepEqual(heard, [6, 7, ["recovered", 1]]);
});

test("a gap after the requested position is not reported if the old connection delivered the missing messages", async () => {
  const { old, next, heard } = await startMoving();
  old.bring("news", 6, at(6));
  old.drop(1001);
  await next.answer("subscribe", recovery("e:7:t7", false));
  await next.answer("unsubscribe");
  assert.deepEqual(next.unanswered("subscribe").map(({ message }) => message.params.recover), ["e:6:t6"]);
  assert.deepEqual(heard, [6]);
});

test("a gap that both nodes report is reported once, also if the old connection ended before the new one's reply", async () => {
  const { old, next, heard } = await startMoving();
  for (const socket of [old, next]) {
    socket.say("pubsub", { type: "gap", channel: "news", position: "f:0:t" });
    socket.bring("news", 1, at(1, "f"));
  }
  old.drop(1001);
  await next.answer("subscribe", recovery("e:5:t5"));
  await next.answer("unsubscribe");
  await next.answer("subscribe", recovery("f:1:t1"));
  assert.deepEqual(heard, [["gap", "live", "f:0:t"], 1, ["recovered", 0]]);
});

test("a replay does not continue after a gap that only the old node reported", async () => {
  const { old, next, heard } = await startMoving();
  await next.answer("subscribe", recovery("e:6:t6", true, [entry(6)]));
  old.bring("news", 6, at(6));
  old.say("pubsub", { type: "gap", channel: "news", position: "f:0:t" });
  await old.answer("info");
  await next.answer("unsubscribe");
  assert.deepEqual(next.unanswered("subscribe").map(({ message }) => message.params.recover), ["f:0:t"]);
  assert.deepEqual(heard, [6, ["gap", "live", "f:0:t"]]);
});

test("a gap that only the old node has reported so far is reported once", async () => {
  const { old, next, heard } = await startMoving();
  await next.answer("subscribe", recovery("e:5:t5"));
  old.say("pubsub", { type: "gap", channel: "news", position: "f:0:t" });
  old.bring("news", 1, at(1, "f"));
  next.bring("news", 6, at(6));
  await old.answer("info");
  await next.answer("unsubscribe");
  assert.deepEqual(next.unanswered("subscribe").map(({ message }) => message.params.recover), ["f:1:t1"]);
  assert.deepEqual(heard, [["gap", "live", "f:0:t"], 1, ["recovered", 0]]);
});

test("without history a move compares contents", async () => {
  const { network, clock, heard } = await startRecovering(recovery(null, false));
  const old = network.last;
  old.say("gateway", { type: "moving", graceMs: 4_000 });
  await clock.pass(1_000);
  network.last.open();
  await network.last.answer("subscribe", recovery(null, false));
  old.bring("news", "a");
  network.last.bring("news", "a");
  network.last.bring("news", "b");
  await old.answer("info");
  assert.deepEqual(heard, ["a", "b"]);
});

test("a subscription created while offline recovers from its start", async () => {
  const { client, network } = start();
  client.subscribe("news", () => {}, { recover: true });
  network.last.open();
  await settled();
  assert.deepEqual(network.last.sent[0]?.message.params, { channel: "news", recover: true });
});
