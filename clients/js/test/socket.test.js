/** The client on real sockets: the package `ws` on both ends. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import { WebSocket, WebSocketServer } from "ws";

import { connect, msgpack } from "../src/snorky.js";
import { json } from "../src/wire/json.js";

/** A server that replies to every request and echoes publications. */
async function serve() {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
  await once(server, "listening");
  server.on("connection", (socket) => {
    const codec = socket.protocol === msgpack.subprotocol ? msgpack : json;
    const send = (/** @type {unknown} */ message) => socket.send(codec.encode({ service: "pubsub", message }));
    socket.on("message", (data, isBinary) => {
      const bytes = /** @type {Buffer} */ (data);
      const { message } = /** @type {any} */ (codec.decode(isBinary ? Uint8Array.from(bytes).buffer : bytes.toString()));
      send({ type: "response", callId: message.callId, data: codec.name });
      if (message.command === "publish") send({ type: "message", ...message.params });
    });
  });
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  return {
    server,
    url: `ws://127.0.0.1:${port}`,
    async stop() {
      for (const socket of server.clients) socket.terminate();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

for (const encoding of [json, msgpack]) {
  test(`a message is published and received in ${encoding.name}`, { timeout: 10_000 }, async () => {
    const { url, stop } = await serve();
    const client = connect(url, { WebSocket, encoding });
    /** @type {Promise<unknown>} */
    const heard = new Promise((resolve) => client.subscribe("news", resolve));
    assert.equal(await client.publish("news", { text: "grüße", n: -1.5 }), encoding.name);
    assert.deepEqual(await heard, { text: "grüße", n: -1.5 });
    client.close();
    await stop();
  });
}

test("a killed connection is replaced and its subscription restored", { timeout: 10_000 }, async () => {
  const { server, url, stop } = await serve();
  const client = connect(url, { WebSocket, backoffBaseMs: 10 });
  /** @type {(message: unknown) => void} */
  let hear = () => {};
  await client.subscribe("news", (message) => hear(message)).ready;
  const reopened = new Promise((resolve) => client.on("open", resolve));
  for (const socket of server.clients) socket.terminate();
  await reopened;
  const heard = new Promise((resolve) => (hear = resolve));
  await client.publish("news", "back");
  assert.equal(await heard, "back");
  client.close();
  await stop();
});

test("closing during the handshake throws nothing", { timeout: 10_000 }, async () => {
  const { server, url, stop } = await serve();
  const client = connect(url, { WebSocket });
  client.close();
  assert.equal(client.state, "closed");
  await stop();
  assert.equal(server.clients.size, 0);
});
