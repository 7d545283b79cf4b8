/** Subscription tokens: asking the application for them, and renewing them. Functions that fail: token_function.test.js. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { SnorkyError } from "../src/snorky.js";
import { settled } from "../support/fakes.js";
import { startOpen, withCode } from "../support/start.js";

const granted = (/** @type {number} */ expiresInS) => ({ type: "response", data: { expiresInS } });
const refusal = (/** @type {string} */ code, /** @type {object} */ more = {}) => ({ type: "error", message: code, code, ...more });

/** A function that gives t1, t2, ... and the channels that it was called with. */
function counting() {
  /** @type {any[]} */
  const channels = [];
  return { channels, token: async (/** @type {any} */ channel) => `t${channels.push(channel)}` };
}

/** A client whose channel "news" is confirmed, with a token for `expiresInS`. @param {number} expiresInS */
async function startGranted(expiresInS, token = counting().token) {
  const all = startOpen();
  /** @type {any[]} */
  const heard = [];
  const news = all.client.subscribe("news", (message) => heard.push(message), { token });
  await settled();
  const socket = all.network.last;
  await socket.answer("subscribe", granted(expiresInS));
  const refreshes = () => socket.sent.filter(({ message }) => message.command === "refreshSubscription")
    .map(({ message }) => message.params.token);
  const errors = () => all.events.filter(([event]) => event === "error").map(([, detail]) => detail);
  return { ...all, news, heard, socket, refreshes, errors };
}

test("the token of a function goes along with subscribe, and the function is called with the channel", async () => {
  const { client, network } = startOpen();
  const { channels, token } = counting();
  const news = client.subscribe({ room: 1 }, () => {}, { token, recover: true });
  await settled();
  assert.deepEqual(network.last.sent[0]?.message.params, { channel: { room: 1 }, recover: true, token: "t1" });
  assert.deepEqual(channels, [{ room: 1 }]);
  await network.last.answer("subscribe", { type: "response", data: { position: null, recovered: false, messages: [], expiresInS: 9 } });
  await news.ready;
});

test("a text is sent with each subscribe, at once, and is never renewed", async () => {
  const { client, network, clock } = startOpen();
  client.subscribe("news", () => {}, { token: "a.b-c" });
  assert.deepEqual(network.last.sent[0]?.message.params, { channel: "news", token: "a.b-c" });
  await network.last.answer("subscribe", granted(100));
  assert.equal(clock.timers, 0);
  network.last.drop();
  await clock.pass(1_000);
  network.last.open();
  assert.equal(network.last.sent[0]?.message.params.token, "a.b-c");
});

test("a token that cannot be one is rejected at the call, and is not in the error", () => {
  const { client, network } = startOpen();
  for (const token of /** @type {any[]} */ (["", "a b", "grüße", 7, null, {}])) {
    assert.throws(() => client.subscribe("news", () => {}, { token }), (/** @type {any} */ error) => {
      return error instanceof TypeError && (token === "" || !error.message.includes(` ${token} `));
    });
  }
  assert.deepEqual(network.last.sent, []);
});

test("after a reconnect the function is called again", async () => {
  const { client, network, clock } = startOpen();
  const { token } = counting();
  client.subscribe("news", () => {}, { token });
  await settled();
  await network.last.answer("subscribe", granted(3_600));
  network.last.drop();
  await clock.pass(1_000);
  network.last.open();
  await settled();
  assert.equal(network.last.sent[0]?.message.params.token, "t2");
});

test("a postponed subscribe is sent again with a new token", async () => {
  const { client, network, clock } = startOpen();
  client.subscribe("news", () => {}, { token: counting().token });
  await settled();
  await network.last.answer("subscribe", refusal("unavailable", { retryAfterMs: 200 }));
  await clock.pass(300);
  assert.deepEqual(network.last.unanswered("subscribe").map(({ message }) => message.params.token), ["t2"]);
});

test("a token is renewed in place after about three quarters of its time, and again", async () => {
  const { clock, socket, refreshes, heard, errors } = await startGranted(100);
  await clock.pass(74_999);
  assert.deepEqual(refreshes(), []);
  await clock.pass(1);
  assert.deepEqual(refreshes(), ["t2"]);
  assert.deepEqual(socket.unanswered("refreshSubscription")[0]?.message.params.channel, "news");
  socket.bring("news", 1);
  await socket.answer("refreshSubscription", granted(40));
  await clock.pass(30_000);
  socket.bring("news", 2);
  assert.deepEqual([refreshes(), heard, errors()], [["t2", "t3"], [1, 2], []]);
  assert.equal(socket.commands.filter((command) => command === "subscribe").length, 1);
});

for (const expiresInS of [0, 1]) {
  test(`a token for ${expiresInS} s is renewed at most once a second`, async () => {
    const { clock, socket, refreshes } = await startGranted(expiresInS);
    for (let second = 1; second <= 3; second++) {
      await clock.pass(999);
      assert.equal(refreshes().length, second - 1);
      await clock.pass(1);
      await socket.answer("refreshSubscription", granted(expiresInS));
    }
  });
}

test("a token for longer than a timer can wait is not renewed at once", async () => {
  const { clock, refreshes } = await startGranted(10 ** 9);
  await clock.pass(2 ** 31 - 2);
  assert.deepEqual(refreshes(), []);
  await clock.pass(1);
  assert.deepEqual(refreshes(), ["t2"]);
});

test("a reply without an expiry, or with nonsense, starts no timer", async () => {
  for (const expiresInS of /** @type {any[]} */ ([undefined, null, "soon", -1, NaN])) {
    const { clock } = await startGranted(expiresInS);
    assert.equal(clock.timers, 0);
  }
});

test("a failed renewal is reported, and repeated with backoff until the end", async () => {
  let isFailing = false;
  const { token } = counting();
  const { clock, refreshes, errors, socket } = await startGranted(100, async (channel) => {
    if (isFailing) throw new Error("no session");
    return token(channel);
  });
  isFailing = true;
  await clock.pass(75_000);
  const [detail] = errors();
  assert.deepEqual([detail.service, detail.channel, detail.error.code], ["pubsub", "news", "token"]);
  assert.match(detail.error.message, /no session/);
  await clock.pass(15_000);
  const repeated = errors().length;
  assert.ok(repeated >= 3 && repeated <= 5, `${repeated} attempts`);
  isFailing = false;
  await clock.pass(10_000);
  assert.equal(refreshes()[0], "t2");
  await socket.answer("refreshSubscription", granted(100));
  await clock.pass(74_999);
  assert.deepEqual(refreshes(), ["t2"]);
});

test("near the end, renewals are repeated in time, at most once a second", async () => {
  let attempts = 0;
  const { clock } = await startGranted(8, async () => {
    if (++attempts > 1) throw new Error("hiccup");
    return "t";
  });
  await clock.pass(8_000); // at 6 s, 7.5 s, and a second later
  assert.equal(attempts, 3);
  await clock.pass(3_000);
  assert.equal(attempts, 6);
});

test("a renewal that the server postpones is repeated without an error", async () => {
  const { clock, socket, refreshes, errors } = await startGranted(100);
  await clock.pass(75_000);
  await socket.answer("refreshSubscription", refusal("unavailable", { retryAfterMs: 5_000 }));
  await clock.pass(4_999);
  assert.deepEqual(refreshes(), ["t2"]);
  await clock.pass(1);
  assert.deepEqual([refreshes(), errors()], [["t2", "t3"], []]);
});

for (const code of ["invalid_token", "not_authorized", "revoked"]) {
  test(`a renewal that is refused with ${code} is reported and repeated: the present token remains`, async () => {
    const { clock, socket, refreshes, errors, heard } = await startGranted(100);
    await clock.pass(75_000);
    await socket.answer("refreshSubscription", refusal(code));
    socket.bring("news", 1);
    assert.deepEqual([errors()[0].error.code, errors()[0].channel, heard], [code, "news", [1]]);
    await clock.pass(2_000);
    assert.deepEqual(refreshes(), ["t2", "t3"]);
  });
}

test("an error of the client that the function passes on is an error of the function", async () => {
  let count = 0;
  const { clock, socket, errors } = await startGranted(100, async () => {
    if (++count > 1) throw new SnorkyError("Not subscribed", "not_subscribed", 60_000);
    return "t1";
  });
  await clock.pass(75_000);
  assert.deepEqual([errors()[0]?.error.code, socket.commands], ["token", ["subscribe"]]);
  await clock.pass(2_000);
  assert.equal(count, 3);
});

test("null at a renewal is final: the subscription lasts until its present token expires", async () => {
  let count = 0;
  const { clock, heard, socket, refreshes, errors } = await startGranted(100, async () => (++count === 1 ? "t1" : /** @type {any} */ (null)));
  await clock.pass(99_000);
  socket.bring("news", 1);
  assert.deepEqual([count, heard, refreshes(), errors(), clock.timers], [2, [1], [], [], 0]);
});

test("a renewal that finds no subscription subscribes again, from the last position", async () => {
  const { client, network, clock } = startOpen();
  const socket = network.last;
  client.subscribe("news", () => {}, { token: counting().token, recover: true });
  await settled();
  await socket.answer("subscribe", { type: "response", data: { position: "e:5:t", recovered: true, messages: [], expiresInS: 100 } });
  await clock.pass(75_000);
  await socket.answer("refreshSubscription", refusal("not_subscribed"));
  await socket.answer("unsubscribe", refusal("not_subscribed"));
  assert.deepEqual(socket.unanswered("subscribe").map(({ message }) => message.params), [
    { channel: "news", recover: "e:5:t", token: "t3" },
  ]);
});

test("an expired token is asked for again with backoff; once is no error", async () => {
  const { client, network, clock, events } = startOpen();
  const { token, channels } = counting();
  const news = client.subscribe("news", () => {}, { token });
  await settled();
  await network.last.answer("subscribe", refusal("token_expired"));
  await clock.pass(1_499);
  assert.equal(channels.length, 1);
  await clock.pass(1);
  assert.deepEqual(events.map(([event]) => event), ["open"]);
  await network.last.answer("subscribe", refusal("token_expired"));
  assert.deepEqual(events.map(([event]) => event), ["open", "error"]);
  await clock.pass(2_999);
  assert.equal(channels.length, 2);
  await clock.pass(1);
  await network.last.answer("subscribe", granted(60));
  await news.ready;
});

test("a text that has expired is refused for good", async () => {
  const { client, network, clock } = startOpen();
  const news = client.subscribe("news", () => {}, { token: "old" });
  await network.last.answer("subscribe", refusal("token_expired"));
  await assert.rejects(news.ready, withCode("token_expired"));
  await clock.pass(100_000);
  assert.deepEqual(network.last.commands, ["subscribe"]);
});

test("handlers of one channel share a subscription: the token is that of the latest handler that has one", async () => {
  const { client, network, clock } = startOpen();
  const reconnect = async () => {
    network.last.drop();
    await clock.pass(1_000);
    network.last.open();
    await settled();
    return network.last.sent.map(({ message }) => message.params.token);
  };
  client.subscribe("news", () => {}, { token: "one" });
  const second = client.subscribe("news", () => {}, { token: async () => "two" });
  client.subscribe("news", () => {});
  assert.deepEqual(network.last.sent.map(({ message }) => message.params.token), ["one"]);
  assert.deepEqual(await reconnect(), ["two"]);
  second.close();
  assert.deepEqual(await reconnect(), ["one"]);
});

test("a subscribe that timed out but succeeded is repeated, because its expiry is unknown", async () => {
  const { client, network, clock } = startOpen();
  const socket = network.last;
  client.subscribe("news", () => {}, { token: counting().token });
  await clock.pass(11_500);
  assert.deepEqual(socket.commands, ["subscribe", "subscribe"]);
  const [, second] = socket.unanswered("subscribe");
  socket.say("pubsub", { ...refusal("already_subscribed"), message: "Already subscribed", callId: second?.message.callId });
  await settled();
  await socket.answer("unsubscribe");
  await clock.pass(0);
  assert.equal(socket.sent.at(-1)?.message.params.token, "t3");
});

test("closing while a renewal runs sends nothing later", async () => {
  let give = (/** @type {string} */ _token) => {};
  let count = 0;
  const { news, socket, clock, errors } = await startGranted(
    100, async () => (++count === 1 ? "t1" : new Promise((resolve) => (give = resolve))),
  );
  await clock.pass(75_000);
  news.close();
  give("late");
  await socket.answer("unsubscribe");
  await clock.pass(100_000);
  assert.deepEqual([socket.commands, errors(), clock.timers], [["subscribe", "unsubscribe"], [], 0]);
});
