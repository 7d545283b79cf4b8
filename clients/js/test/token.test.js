import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../src/snorky.js";
import { FakeNetwork, settled } from "../support/fakes.js";
import { start, withCode } from "../support/start.js";

const known = (/** @type {number | null} */ expiresInS) => ({ type: "response", data: { identity: "ann", expiresInS } });

/** A client with a token function that gives t1, t2, ... @param {object} [options] */
async function startWithFunction(options = {}) {
  let count = 0;
  const asked = { get count() { return count; } };
  const all = start({ token: async () => `t${++count}`, ...options });
  await settled();
  return { ...all, asked };
}

test("the handshake carries the token next to the encoding", () => {
  const { network } = start({ token: "a.b-c_d" });
  assert.deepEqual(network.last.protocols, ["snorky.json", "bearer.a.b-c_d"]);
  network.last.open();
  assert.deepEqual(network.last.sent, []);
});

test("an invalid token is rejected at once, and is not in the error", () => {
  const { WebSocket } = new FakeNetwork();
  for (const token of ["", "a b", "a,b", "grüße", /** @type {any} */ (7)]) {
    assert.throws(() => connect("wss://example.org", { WebSocket, token }), (/** @type {any} */ error) => {
      return error instanceof TypeError && (token === "" || !error.message.includes(` ${token} `));
    });
  }
});

test("a token function is called before connecting, and reconnects use the same token", async () => {
  const { network, clock, asked, client } = await startWithFunction();
  assert.deepEqual(network.last.protocols, ["snorky.json", "bearer.t1"]);
  assert.equal(client.state, "connecting");
  network.last.open();
  await network.last.answer("authenticate", known(3_600));
  network.last.drop();
  await clock.pass(1_000);
  assert.deepEqual(network.last.protocols, ["snorky.json", "bearer.t1"]);
  assert.equal(asked.count, 1);
});

test("a token is replaced on the same connection before it expires", async () => {
  const { network, clock, events } = await startWithFunction();
  network.last.open();
  await network.last.answer("authenticate", known(100));
  await clock.pass(79_999);
  assert.deepEqual(network.last.commands, ["authenticate"]);
  await clock.pass(1);
  assert.deepEqual(network.last.unanswered("refresh").map(({ message }) => message.params), [{ token: "t2" }]);
  await network.last.answer("refresh", known(100));
  await clock.pass(80_000);
  assert.deepEqual(network.last.unanswered("refresh").map(({ message }) => message.params), [{ token: "t3" }]);
  assert.equal(network.sockets.length, 1);
  assert.deepEqual(events.map(([event]) => event), ["open"]);
});

test("a token without an expiry is not replaced", async () => {
  const { network, clock } = await startWithFunction();
  network.last.open();
  await network.last.answer("authenticate", known(null));
  await clock.pass(10_000_000);
  assert.equal(clock.timers, 0);
});

test("a token that expired while disconnected is replaced before connecting", async () => {
  const { network, clock } = await startWithFunction({ backoffBaseMs: 40_000, backoffMaxMs: 40_000 });
  network.last.open();
  await network.last.answer("authenticate", known(10));
  network.last.drop();
  await clock.pass(20_000);
  assert.deepEqual(network.last.protocols, ["snorky.json", "bearer.t2"]);
});

test("after 4501 a new token is tried once; if that is refused too, the client ends", async () => {
  const { client, network, clock, events } = await startWithFunction();
  network.last.open();
  network.last.drop(4501, "Invalid token");
  await clock.pass(1_000);
  assert.deepEqual(network.last.protocols, ["snorky.json", "bearer.t2"]);
  network.last.open();
  network.last.drop(4501, "Invalid token");
  assert.equal(client.state, "closed");
  assert.deepEqual(events.at(-1), ["close", { code: 4501, reason: "Invalid token", willReconnect: false }]);
  await clock.pass(100_000);
  assert.equal(network.sockets.length, 2);
});

test("a token that was accepted may be refused later, and a new one is tried again", async () => {
  const { client, network, clock } = await startWithFunction();
  for (const token of ["t1", "t2", "t3"]) {
    assert.deepEqual(network.last.protocols, ["snorky.json", `bearer.${token}`]);
    network.last.open();
    await network.last.answer("authenticate", known(null));
    network.last.drop(4501, "Token expired");
    await clock.pass(1_000);
  }
  assert.equal(client.state, "connecting");
});

for (const code of [4502, 4503]) {
  test(`close code ${code} ends the client, also with a token function`, async () => {
    const { client, network } = await startWithFunction();
    network.last.open();
    network.last.drop(code);
    assert.equal(client.state, "closed");
  });
}

test("a refused static token ends the client", async () => {
  const { client, network } = start({ token: "static" });
  network.last.open();
  network.last.drop(4501);
  assert.equal(client.state, "closed");
});

test("a failing token function emits an error event, and is called again with backoff", async () => {
  let isFailing = true;
  const { client, network, clock, events } = start({
    token() {
      if (isFailing) throw new Error("no session");
      return "good";
    },
  });
  await settled();
  assert.equal(network.sockets.length, 0);
  assert.deepEqual(events.map(([event]) => event), ["error", "reconnecting"]);
  assert.equal(withCode("token")(events[0][1].error), true);
  assert.equal(client.state, "waiting");
  isFailing = false;
  await clock.pass(1_000);
  assert.deepEqual(network.last.protocols, ["snorky.json", "bearer.good"]);
});

test("a failed renewal is retried while the present token is valid", async () => {
  let count = 0;
  const { network, clock, events } = start({
    async token() {
      if (++count === 2) throw new Error("hiccup");
      return `t${count}`;
    },
  });
  await settled();
  network.last.open();
  await network.last.answer("authenticate", known(100));
  await clock.pass(80_000);
  assert.deepEqual(events.map(([event]) => event), ["open", "error"]);
  await clock.pass(16_000); // 80 % of the remaining time
  assert.deepEqual(network.last.unanswered("refresh").map(({ message }) => message.params), [{ token: "t3" }]);
});

test("a renewal that the server postpones is retried while the present token is valid", async () => {
  const { network, clock, events } = await startWithFunction();
  network.last.open();
  await network.last.answer("authenticate", known(100));
  await clock.pass(80_000);
  await network.last.answer("refresh", { type: "error", message: "Unavailable", code: "unavailable", retryAfterMs: 1_000 });
  await clock.pass(16_000); // 80 % of the remaining time
  assert.deepEqual(network.last.unanswered("refresh").map(({ message }) => message.params), [{ token: "t3" }]);
  assert.deepEqual(events.map(([event]) => event), ["open", "error"]);
});

test("a connection that ends before the reply is not a token error", async () => {
  const { network, clock, events, asked } = await startWithFunction();
  network.last.open();
  network.last.drop();
  await clock.pass(1_000);
  network.last.open();
  await network.last.answer("authenticate", known(null));
  assert.deepEqual(events.map(([event]) => event), ["open", "close", "reconnecting", "open"]);
  assert.equal(asked.count, 1);
});

test("closing while the token function runs opens no connection", async () => {
  const { client, network, clock } = start({ token: async () => "late" });
  client.close();
  await clock.pass(1_000);
  assert.equal(network.sockets.length, 0);
  assert.equal(clock.timers, 0);
});

test("after a move the token is renewed on the new connection", async () => {
  const { network, clock } = await startWithFunction();
  const old = network.last;
  old.open();
  await old.answer("authenticate", known(100));
  old.say("gateway", { type: "moving", graceMs: 4_000 });
  await clock.pass(1_000);
  const next = network.last;
  next.open();
  await settled();
  await old.answer("info");
  await next.answer("authenticate", known(99));
  await clock.pass(80_000);
  assert.deepEqual(old.commands, ["authenticate", "info"]);
  assert.deepEqual(next.commands, ["authenticate", "refresh"]);
});
