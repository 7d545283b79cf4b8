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
 * A client whose channel "news" stands at e:5, and what it hears.
 *
 * @param {object} [first] the answer to the first subscription
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

test("the first subscription asks for recovery from now on, and tells its position", async () => {
  const { network, news, heard } = await startRecovering();
  assert.deepEqual(network.last.sent[0]?.message.params, { channel: "news", recover: true });
  await news.ready;
  assert.equal(news.position, "e:5:t5");
  network.last.bring("news", 6, at(6));
  assert.equal(news.position, "e:6:t6");
  assert.deepEqual(heard, [6]);
});

test("behind a reconnect the client asks from where it stands, and gets what it missed first", async () => {
  const { network, heard, reconnect, news } = await startRecovering();
  network.last.bring("news", 6, at(6));
  const socket = await reconnect();
  assert.deepEqual(socket.sent[0]?.message.params, { channel: "news", recover: "e:6:t6" });
  socket.bring("news", 9, at(9)); // live, and overtakes the answer
  await socket.answer("subscribe", recovery("e:8:t8", true, [entry(7), entry(8)]));
  socket.bring("news", 10, at(10));
  assert.deepEqual(heard, [6, 7, 8, ["recovered", 2], 9, 10]);
  assert.equal(news.position, "e:10:t10");
});

test("what comes in the answer and live is delivered once", async () => {
  const { heard, reconnect } = await startRecovering();
  const socket = await reconnect();
  socket.bring("news", 6, at(6));
  socket.bring("news", 7, at(7));
  await socket.answer("subscribe", recovery("e:6:t6", true, [entry(6)]));
  socket.bring("news", 7, at(7));
  assert.deepEqual(heard, [6, ["recovered", 1], 7]);
});

test("what cannot be recovered is told as a gap, and the channel goes on from the new position", async () => {
  const { heard, reconnect, news } = await startRecovering();
  let socket = await reconnect();
  await socket.answer("subscribe", recovery("f:2:t2", false));
  assert.equal(news.position, "f:2:t2");
  socket.bring("news", 3, at(3, "f"));
  assert.deepEqual(heard, [["gap", "recovery", "f:2:t2"], 3]);
  socket = await reconnect();
  assert.equal(socket.sent[0]?.message.params.recover, "f:3:t3");
});

test("a gap that the server tells is an event, and counting begins anew behind it", async () => {
  const { network, heard } = await startRecovering();
  network.last.say("pubsub", { type: "gap", channel: "news", position: "g:0:t" });
  network.last.bring("news", 1, at(1, "g"));
  assert.deepEqual(heard, [["gap", "live", "g:0:t"], 1]);
});

test("behind a hole nothing is delivered before it has been asked for", async () => {
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

test("what the given up subscription still brings is not of the new one", async () => {
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
  test(`${what} is a hole too`, async () => {
    const { network, heard } = await startRecovering();
    network.last.bring("news", "x", next);
    assert.deepEqual(heard, []);
    await network.last.answer("unsubscribe");
    await network.last.answer("subscribe", recovery("f:6:t6", false));
    assert.deepEqual(heard, [["gap", "recovery", "f:6:t6"]]);
  });
}

test("messages without a position are delivered as they come", async () => {
  const { network, heard, news } = await startRecovering();
  network.last.bring("news", "bare");
  network.last.bring("news", 6, at(6));
  assert.deepEqual(heard, ["bare", 6]);
  assert.equal(news.position, "e:6:t6");
});

test("a tombstone keeps its place, and is no message", async () => {
  const { network, heard, news, reconnect } = await startRecovering();
  network.last.bring("news", null, { ...at(6), tombstone: true });
  network.last.bring("news", 7, at(7));
  assert.equal(news.position, "e:7:t7");
  const socket = await reconnect();
  await socket.answer("subscribe", recovery("e:9:t9", true, [{ ...entry(8), message: null, tombstone: true }, entry(9)]));
  assert.deepEqual(heard, [7, 9, ["recovered", 1]]);
});

test("what has to be kept for an answer is bounded; beyond, another connection is made", async () => {
  const { heard, reconnect, events } = await startRecovering();
  const socket = await reconnect();
  for (let offset = 6; offset <= 10_005; offset++) socket.bring("news", offset, at(offset));
  assert.equal(socket.closedWith, undefined);
  socket.bring("news", 10_006, at(10_006));
  assert.equal(socket.closedWith, 1000);
  assert.deepEqual(heard, []);
  assert.equal(events.at(-1)[0], "reconnecting");
});

test("a channel without history is heard; each reconnect is a gap, the beginning is none", async () => {
  const { network, heard, news, reconnect } = await startRecovering(recovery(null, false));
  assert.equal(news.position, null);
  network.last.bring("news", "a");
  const socket = await reconnect();
  await socket.answer("subscribe", recovery(null, false));
  socket.bring("news", "b");
  assert.deepEqual(heard, ["a", ["gap", "recovery", null], "b"]);
});

test("a position from before is recovered from, and a lost one is told", async () => {
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

test("a position is refused where handlers stand already; null is a page's first visit", async () => {
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

test("a subscription whose answer was lost is given up and asked for again", async () => {
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

test("a server that does not recover refuses, honestly", async () => {
  const { client, network } = startOpen();
  const news = client.subscribe("news", () => {}, { recover: true });
  await network.last.answer("subscribe", { type: "error", message: "Invalid params", code: "invalid_params" });
  await assert.rejects(news.ready, withCode("invalid_params"));
});

test("closing within a replay ends it", async () => {
  const { client, network, clock } = startOpen();
  /** @type {any[]} */
  const heard = [];
  const news = client.subscribe("news", (message) => (heard.push(message), news.close()), { recover: "e:0:t0" });
  await network.last.answer("subscribe", recovery("e:2:t2", true, [entry(1), entry(2)]));
  assert.deepEqual(heard, [1]);
  assert.equal(clock.timers, 1); // of the unsubscription
});

test("a resync close is told with the next connection, and positions hold", async () => {
  const { network, clock, events } = await startRecovering();
  network.last.drop(4010);
  await clock.pass(1_000);
  network.last.open();
  await settled();
  assert.deepEqual(events.at(-1), ["open", { isMove: false, isResync: true }]);
  assert.equal(network.last.sent[0]?.message.params.recover, "e:5:t5");
});

// -- moves -------------------------------------------------------------------------------------------------------

/** As `startRecovering`, told to move, with the next connection open. */
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

test("a move recovers on the new connection, and offsets tell what came over the old one", async () => {
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

test("an old node that lags behind loses nothing", async () => {
  const { old, next, heard } = await startMoving();
  await next.answer("subscribe", recovery("e:6:t6", true, [entry(6)]));
  await old.answer("info");
  next.bring("news", 7, at(7));
  assert.deepEqual(heard, [6, ["recovered", 1], 7]);
});

test("if the old node told a gap meanwhile, the new one is asked anew from behind it", async () => {
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

test("if the new node could not recover, it is asked anew from where the old one came to", async () => {
  const { old, next, heard } = await startMoving();
  old.bring("news", 6, at(6));
  await next.answer("subscribe", recovery("e:400:t400", false));
  old.bring("news", 7, at(7));
  await old.answer("info");
  await next.answer("unsubscribe");
  assert.deepEqual(next.unanswered("subscribe").map(({ message }) => message.params.recover), ["e:7:t7"]);
  assert.deepEqual(heard, [6, 7]);
});

test("if the old connection ends before the new one has answered, nothing comes twice", async () => {
  const { old, next, heard } = await startMoving();
  old.bring("news", 6, at(6));
  old.drop(1001);
  await next.answer("subscribe", recovery("e:7:t7", true, [entry(6), entry(7)]));
  assert.deepEqual(heard, [6, 7, ["recovered", 1]]);
});

test("a gap behind the position asked with is none if the old connection brought what is missing", async () => {
  const { old, next, heard } = await startMoving();
  old.bring("news", 6, at(6));
  old.drop(1001);
  await next.answer("subscribe", recovery("e:7:t7", false));
  await next.answer("unsubscribe");
  assert.deepEqual(next.unanswered("subscribe").map(({ message }) => message.params.recover), ["e:6:t6"]);
  assert.deepEqual(heard, [6]);
});

test("a gap that both nodes told is told once, also if the old connection ended before the new one's answer", async () => {
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

test("a replay is not taken for what comes behind a gap that only the old node told", async () => {
  const { old, next, heard } = await startMoving();
  await next.answer("subscribe", recovery("e:6:t6", true, [entry(6)]));
  old.bring("news", 6, at(6));
  old.say("pubsub", { type: "gap", channel: "news", position: "f:0:t" });
  await old.answer("info");
  await next.answer("unsubscribe");
  assert.deepEqual(next.unanswered("subscribe").map(({ message }) => message.params.recover), ["f:0:t"]);
  assert.deepEqual(heard, [6, ["gap", "live", "f:0:t"]]);
});

test("a gap that only the old node told yet is told once", async () => {
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

test("without history a move goes by contents", async () => {
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

test("a subscription made while offline recovers from its beginning on", async () => {
  const { client, network } = start();
  client.subscribe("news", () => {}, { recover: true });
  network.last.open();
  await settled();
  assert.deepEqual(network.last.sent[0]?.message.params, { channel: "news", recover: true });
});
