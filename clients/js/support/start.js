/** Clients on a fake network and clock, and their events. */

import { SnorkyError, connect } from "../src/snorky.js";
import { FakeClock, FakeNetwork } from "./fakes.js";

/** `fetch` of a browser that does not show the response to the page. */
export const unknown = () => Promise.reject(new TypeError("Failed to fetch"));

/** A client without event handlers. @param {import("../src/options.js").ClientOptions} [options] */
export function quiet(options = {}) {
  const network = new FakeNetwork();
  const clock = new FakeClock();
  const client = connect("wss://example.org/ws", {
    WebSocket: network.WebSocket, clock, random: () => 0.5, probeAfterMs: 0, fetch: unknown, ...options,
  });
  return { client, network, clock };
}

/** @param {import("../src/options.js").ClientOptions} [options] */
export function start(options = {}) {
  const { client, network, clock } = quiet(options);
  /** @type {any[]} */
  const events = [];
  for (const event of /** @type {const} */ (["open", "close", "reconnecting", "moving", "notice", "error"])) {
    client.on(event, (detail) => events.push([event, detail]));
  }
  return { client, network, clock, events };
}

/** @param {import("../src/options.js").ClientOptions} [options] */
export function startOpen(options) {
  const all = start(options);
  all.network.last.open();
  return all;
}

/** @param {string} code */
export const withCode = (code) => (/** @type {unknown} */ error) => error instanceof SnorkyError && error.code === code;
