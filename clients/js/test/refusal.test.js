/** When a refused handshake ends a client, and when the client requests its URL to find out why. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { settled } from "../support/fakes.js";
import { quiet, start, startOpen } from "../support/start.js";

/** @param {number} status @param {string} [type] */
const fetching = (status, type = "default") => {
  /** @type {string[]} */
  const urls = [];
  const fetch = async (/** @type {any} */ url) => {
    urls.push(url);
    return /** @type {any} */ ({ status, type, text: async () => "" });
  };
  return { fetch: /** @type {any} */ (fetch), urls };
};

test("after an unknown failure the client retries, and probes the URL less and less often", async () => {
  for (const [status, type] of /** @type {const} */ ([[400, "cors"], [405, "cors"], [426, "cors"], [200, "basic"]])) {
    const { fetch, urls } = fetching(status, type);
    const { client, network, clock } = start({ fetch, connectTimeoutMs: 100_000 });
    for (let failure = 1; failure <= 20; failure++) {
      network.last.drop();
      await clock.pass(20_000);
    }
    assert.equal(network.sockets.length, 21);
    assert.deepEqual(urls, Array(5).fill("https://example.org/ws")); // after 1, 2, 4, 8 and 16
    client.close();
    assert.equal(clock.timers, 0);
  }
});

test("a refusal after a successful connection is reported and does not end the client", async () => {
  const { network, clock, events } = startOpen({ fetch: fetching(404).fetch });
  network.last.drop();
  await clock.pass(1_000);
  network.last.drop();
  await clock.pass(1_000);
  network.last.onerror(/** @type {any} */ ({ message: "Unexpected server response: 403" }));
  network.last.drop();
  const waits = events.filter(([event]) => event === "reconnecting").map(([, { status }]) => status);
  assert.deepEqual(waits, [undefined, undefined, 403]);
  await clock.pass(20_000);
  network.last.open();
  network.last.drop();
  assert.equal(events.at(-1)?.[1].status, undefined); // it was refused before, not now
});

test("a failed handshake that is reported by an error event alone ends the socket at once", async () => {
  const { network, clock, events } = start();
  network.last.onerror({ message: "Received network error or non-101 status code." });
  await clock.pass(1_000);
  assert.equal(network.sockets.length, 2);
  assert.deepEqual(events.map(([event]) => event), ["reconnecting"]);
});

test("a call without a connection in time rejects with the reason", async () => {
  const { client, network, clock } = start({ fetch: fetching(503).fetch, callTimeoutMs: 3_000, publishMaxAgeMs: 3_000 });
  const isIt = (/** @type {any} */ error) => {
    assert.deepEqual([error.code, error.status], ["offline", 503]);
    assert.match(error.message, /503/);
    return true;
  };
  const calls = Promise.all([assert.rejects(client.call("rpc", "x"), isIt), assert.rejects(client.publish("news", 1), isIt)]);
  network.last.drop();
  await clock.pass(3_000);
  await calls;
});

test("without event handlers a permanently refused handshake is reported as a console warning", async (context) => {
  const warn = context.mock.method(console, "warn", () => {});
  const { client, network } = quiet({ fetch: fetching(404).fetch });
  network.last.drop();
  await settled();
  assert.equal(client.state, "closed");
  assert.match(String(warn.mock.calls[0]?.arguments[1]), /404/);
});

test("after a proxy's 401 a new token is requested once", async () => {
  let tokens = 0;
  const token = () => `token-${(tokens += 1)}`;
  const { client, network, clock } = start({ token });
  for (let attempt = 1; attempt <= 2; attempt++) {
    await settled();
    assert.equal(client.state, "connecting");
    network.last.onerror(/** @type {any} */ ({ message: "Unexpected server response: 401" }));
    network.last.drop();
    await clock.pass(1_000);
  }
  assert.equal(client.state, "closed");
  assert.equal(tokens, 2);
});

test("a probe's response that arrives too late, or after the end, has no effect", async () => {
  for (const isClosed of [true, false]) {
    /** @type {(response: any) => void} */
    let answer = () => {};
    const fetch = /** @type {any} */ (() => new Promise((resolve) => (answer = resolve)));
    const { client, network, clock, events } = start({ fetch });
    network.last.drop();
    if (isClosed) client.close();
    else {
      await clock.pass(1_000);
      network.last.open();
    }
    answer({ status: 404, type: "default" });
    await settled();
    assert.equal(client.state, isClosed ? "closed" : "open");
    assert.deepEqual(events.filter(([event]) => event === "close").map(([, { code }]) => code), isClosed ? [1000] : []);
    assert.equal(clock.timers, 0);
  }
});

test("every error has the reason of a terminal close code", async () => {
  const { client, network } = startOpen();
  const call = assert.rejects(client.subscribe("news", () => {}).ready, /4509 Too much bad input/);
  network.last.drop(4509, "Too much bad input");
  await call;
  await assert.rejects(client.call("rpc", "x"), /4509 Too much bad input/);
});
