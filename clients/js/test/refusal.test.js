/** When a refused handshake ends a client, and when its URL is asked why. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { settled } from "../support/fakes.js";
import { start, startOpen } from "../support/start.js";

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

test("what cannot be known is tried again, and the URL is asked less and less often", async () => {
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

test("who has been connected is not ended by a refusal, but told", async () => {
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

test("an answer that comes too late, or after the end, ends nothing", async () => {
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

test("the reason of a close code that is the end is in every error", async () => {
  const { client, network } = startOpen();
  const call = assert.rejects(client.subscribe("news", () => {}).ready, /4509 Too much bad input/);
  network.last.drop(4509, "Too much bad input");
  await call;
  await assert.rejects(client.call("rpc", "x"), /4509 Too much bad input/);
});
