/** Handshakes refused by real servers: the client ends if trying again cannot help, else its events have the reason. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { createServer as createTcpServer } from "node:net";
import { test } from "node:test";

import { WebSocket } from "ws";

import { connect } from "../src/snorky.js";
import { withCode } from "../support/start.js";

/** A WebSocket that hides the HTTP response, like a browser's. */
class Mute extends WebSocket {
  /** @param {string} url @param {string | string[]} [protocols] */
  constructor(url, protocols) {
    super(url, protocols);
    const set = (/** @type {any} */ handler) => this.addEventListener("error", () => handler({ type: "error" }));
    Object.defineProperty(this, "onerror", { set });
  }
}

/** @param {import("node:net").Server} server @param {"ws" | "wss"} [scheme] */
async function listening(server, scheme = "ws") {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  return `${scheme}://127.0.0.1:${port}/ws`;
}

/** @param {number} status @param {Record<string, string>} [headers] @param {string} [body] */
function answering(status, headers = {}, body = "") {
  const server = createServer((_request, response) => void response.writeHead(status, headers).end(body));
  server.on("upgrade", (_request, socket) => {
    socket.on("error", () => {}); // the client disconnected
    socket.end(`HTTP/1.1 ${status} No\r\n${Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)}\r\n`);
  });
  return server;
}

const garbage = () => createTcpServer((socket) => {
  socket.on("error", () => {});
  socket.once("data", () => socket.end("220 mail.example.org ESMTP\r\n"));
});
const plain = () => createTcpServer((socket) => {
  socket.on("error", () => {});
  socket.once("data", () => socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"));
});

/** @type {[string, () => import("node:net").Server, "ws" | "wss", number | null, RegExp, boolean][]} last: also by fetch */
const FINAL = [
  ["a wrong URL", () => answering(404), "ws", 404, /404.*no WebSocket endpoint/, true],
  ["a refused origin", () => answering(403, {}, "Origin not allowed: ..."), "ws", 403, /403.*origin/i, true],
  ["no permission", () => answering(401), "ws", 401, /401/, false],
  ["a redirect", () => answering(301, { Location: "http://127.0.0.1:1/" }), "ws", 301, /301/, true],
  ["TLS to a plain port", plain, "wss", null, /TLS/, true],
  ["a server of another protocol", garbage, "ws", null, /does not speak HTTP/, true],
];

for (const [what, serve, scheme, status, text, isByFetch] of FINAL) {
  for (const Socket of isByFetch ? [WebSocket, Mute] : [WebSocket]) {
    test(`${what} ends the client, and all calls reject with the reason, with ${Socket.name}`, { timeout: 20_000 }, async () => {
      const server = serve();
      const url = await listening(server, scheme);
      const client = connect(url, { WebSocket: Socket, backoffBaseMs: 100 });
      client.on("error", () => {}); // reported there too
      const end = new Promise((resolve) => client.on("close", resolve));
      const isIt = (/** @type {any} */ error) => {
        assert.ok(withCode("closed")(error));
        assert.equal(error.status, status);
        assert.match(error.message, text);
        return true;
      };
      await Promise.all([
        assert.rejects(client.subscribe("news", () => {}).ready, isIt),
        assert.rejects(client.call("rpc", "x"), isIt),
        assert.rejects(client.publish("news", 1), isIt),
      ]);
      const { reason, ...rest } = /** @type {any} */ (await end);
      assert.match(reason, text);
      assert.deepEqual(rest, { code: 1006, willReconnect: false, ...(status === null ? {} : { status }) });
      assert.equal(client.state, "closed");
      await assert.rejects(client.call("rpc", "x"), isIt);
      await assert.rejects(client.subscribe("news", () => {}).ready, isIt);
      server.close();
    });
  }
}

for (const status of [408, 425, 429, 500, 503]) {
  for (const Socket of [WebSocket, Mute]) {
    test(`${status} is reported and retried, with ${Socket.name}`, { timeout: 20_000 }, async () => {
      const server = answering(status);
      const url = await listening(server);
      const client = connect(url, { WebSocket: Socket, backoffBaseMs: 20, backoffMaxMs: 100 });
      const told = await new Promise((resolve) => {
        client.on("reconnecting", (event) => event.status !== undefined && event.attempt > 1 && resolve(event));
      });
      assert.equal(told.status, status);
      assert.match(told.reason, new RegExp(`${status}`));
      client.close();
      server.close();
    });
  }
}

test("a port without a server is reported and retried", { timeout: 20_000 }, async () => {
  const server = answering(404);
  const url = await listening(server);
  server.close();
  await once(server, "close");
  const client = connect(url, { WebSocket, backoffBaseMs: 10 });
  const { reason } = await new Promise((resolve) => client.on("reconnecting", resolve));
  assert.match(reason, /ECONNREFUSED/);
  client.close();
});
