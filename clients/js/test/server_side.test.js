import assert from "node:assert/strict";
import { test } from "node:test";

import { settled } from "../support/fakes.js";
import { startOpen } from "../support/start.js";

const at = (/** @type {number} */ offset) => ({ offset, position: `e:${offset}:t${offset}` });
const entry = (/** @type {number} */ offset) => ({ message: offset, ...at(offset) });
const recovery = (/** @type {string | null} */ position, recovered = true, /** @type {any[]} */ messages = []) =>
  ({ position, recovered, messages });
const reply = (/** @type {any} */ data) => ({ type: "response", data });
const refusal = (/** @type {string} */ code) => ({ type: "error", message: code, code });

/** A client whose backend may subscribe it, and what its subscriptions hear. */
function startListening() {
  const all = startOpen();
  const { client, network, clock, events } = all;
  /** @type {any[]} */
  const heard = [];
  /** @type {import("../src/snorky.js").ServerSubscription[]} */
  const begun = [];
  client.on("subscribed", (subscription) => {
    begun.push(subscription);
    heard.push(["begun", subscription.channel]);
    subscription.handle((message) => heard.push(message));
    subscription.on("gap", ({ cause, position }) => heard.push(["gap", cause, position]));
    subscription.on("recovered", ({ count }) => heard.push(["recovered", count]));
    subscription.on("unsubscribed", ({ code }) => heard.push(["ended", code]));
  });
  const begin = async (/** @type {object} */ fields = recovery("e:5:t5"), channel = "news") => {
    network.last.say("pubsub", { type: "subscribed", channel, ...fields });
    await settled();
  };
  const reconnect = async () => {
    network.last.drop();
    await clock.pass(1_000);
    network.last.open();
    await settled();
    return network.last;
  };
  return { ...all, heard, begun, begin, reconnect, errors: () => events.filter(([name]) => name === "error") };
}

test("a subscription that the backend begins is an event, and its messages follow in order", async () => {
  const { network, heard, begun, begin } = startListening();
  await begin(recovery("e:5:t5", true, [entry(4), entry(5)]));
  network.last.bring("news", 6, at(6));
  network.last.bring("news", 6, at(6));
  assert.deepEqual(heard, [["begun", "news"], 4, 5, 6]);
  assert.equal(begun[0]?.position, "e:6:t6");
  assert.deepEqual(network.last.sent, [], "nothing is requested");
});

test("after a reconnect it is requested as the backend's, from the last position", async () => {
  const { network, heard, begin, reconnect } = startListening();
  await begin();
  network.last.bring("news", 6, at(6));
  const socket = await reconnect();
  assert.deepEqual(socket.sent[0]?.message.params, { channel: "news", recover: "e:6:t6", serverSide: true });
  await begin(recovery("e:8:t8")); // the node has restored it
  socket.bring("news", 9, at(9));
  await socket.answer("subscribe", reply(recovery("e:8:t8", true, [entry(7), entry(8)])));
  assert.deepEqual(heard, [["begun", "news"], 6, 7, 8, ["recovered", 2], 9]);
});

test("a missing message is requested again without unsubscribing first", async () => {
  const { network, heard, begin } = startListening();
  await begin();
  network.last.bring("news", 8, at(8));
  await settled();
  assert.deepEqual(network.last.sent.map(({ message }) => message.command), ["subscribe"]);
  await network.last.answer("subscribe", reply(recovery("e:8:t8", true, [entry(6), entry(7), entry(8)])));
  assert.deepEqual(heard, [["begun", "news"], 6, 7, 8, ["recovered", 3]]);
});

test("an end that the client has missed is reported after the reconnect, and the backend may begin again", async () => {
  const { heard, begin, reconnect, errors } = startListening();
  await begin();
  const socket = await reconnect();
  await socket.answer("subscribe", refusal("not_subscribed"));
  assert.deepEqual(heard, [["begun", "news"], ["ended", "not_subscribed"]]);
  assert.equal(errors().length, 1);
  const again = await reconnect();
  assert.deepEqual(again.sent, [], "it is not requested any more");
  await begin();
  assert.deepEqual(heard.at(-1), ["begun", "news"]);
});

test("the backend ends it", async () => {
  const { network, heard, begin } = startListening();
  await begin();
  network.last.say("pubsub", { type: "unsubscribed", channel: "news", code: "unsubscribed", reason: "Gone" });
  network.last.bring("news", 6, at(6));
  await begin();
  assert.deepEqual(heard, [["begun", "news"], ["ended", "unsubscribed"], ["begun", "news"]]);
});

test("without a history it has no positions; after a reconnect it continues", async () => {
  const { network, heard, begin, reconnect } = startListening();
  await begin(recovery(null, false));
  network.last.bring("news", 1);
  const socket = await reconnect();
  assert.deepEqual(socket.sent[0]?.message.params, { channel: "news", serverSide: true });
  await socket.answer("subscribe", reply(null));
  socket.bring("news", 2);
  assert.deepEqual(heard, [["begun", "news"], 1, 2]);
});

test("if the backend's position is no longer available, a gap is reported", async () => {
  const { heard, begin } = startListening();
  await begin(recovery("e:9:t9", false));
  assert.deepEqual(heard, [["begun", "news"], ["gap", "recovery", "e:9:t9"]]);
});

test("close unsubscribes, also in the handler of the event", async () => {
  const { client, network, begun, begin, heard } = startListening();
  await begin();
  begun[0]?.close();
  begun[0]?.close();
  client.on("subscribed", (subscription) => subscription.close());
  await begin(undefined, "other");
  network.last.bring("other", 6, at(6));
  const sent = network.last.sent.map(({ message }) => [message.command, message.params.channel]);
  assert.deepEqual(sent, [["unsubscribe", "news"], ["unsubscribe", "other"]]);
  assert.deepEqual(heard, [["begun", "news"], ["begun", "other"]]);
});

test("the application's own subscription of the channel is left as it is", async () => {
  const { client, network, begin, heard } = startListening();
  client.subscribe("news", (message) => heard.push(message));
  await network.last.answer("subscribe", reply(null));
  await begin();
  network.last.bring("news", 1);
  assert.deepEqual(heard, [1]);
});

test("without a handler of the event, what arrives is a notification of the service", async () => {
  const { client, network } = startOpen();
  /** @type {any[]} */
  const heard = [];
  client.listen("pubsub", (message) => heard.push(message.type));
  network.last.say("pubsub", { type: "subscribed", channel: "news", ...recovery("e:5:t5") });
  network.last.bring("news", 6, at(6));
  assert.deepEqual(heard, ["subscribed", "message"]);
});
