// Runs Vite's output for src/: the bundle against a server, then a page in strict mode. Exit code 0 if everything works.

import assert from "node:assert/strict";
import { once } from "node:events";

import { create } from "react-test-renderer";
import { WebSocket, WebSocketServer } from "ws";

import { run } from "./dist/app.js";
import { page } from "./dist/strict.js";

const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
await once(server, "listening");
/** Open, and subscribed. @type {Set<WebSocket>} */
const subscribers = new Set();
let onChange = () => {};
server.on("connection", (socket) => {
  socket.on("message", (data) => {
    const { service, message } = JSON.parse(data.toString());
    socket.send(JSON.stringify({ service, message: { type: "response", callId: message.callId, data: null } }));
    if (message.command === "publish") publish(message.params.message);
    if (message.command === "subscribe") subscribers.add(socket);
    onChange();
  });
  socket.on("close", () => {
    subscribers.delete(socket);
    onChange();
  });
});
const url = `ws://127.0.0.1:${server.address().port}`;

function publish(message) {
  const text = JSON.stringify({ service: "pubsub", message: { type: "message", channel: "news", message } });
  for (const socket of subscribers) socket.send(text);
}

/** Return when the condition is true; checked after every event. */
function until(isTrue) {
  return new Promise((resolve) => {
    onChange = () => isTrue() && resolve();
    onChange();
  });
}

assert.equal(await run(url, WebSocket), "from the bundle");
await until(() => server.clients.size === 0);

const events = [];
const tell = (event) => {
  events.push(event);
  onChange();
};
const complaints = [];
console.error = (...words) => complaints.push(words.join(" "));
const props = { url, WebSocket, tell };
const root = create(page(props));
const mounts = () => events.filter((event) => event === "mounted").length;
await until(() => mounts() === 2 && subscribers.size === 1 && server.clients.size === 1);
publish("one");
publish("two"); // after it no earlier message can arrive
await until(() => events.includes("shows one two"));
assert.deepEqual(events.filter((event) => event.startsWith("error") || event.startsWith("close")), ["close 1000 false"]);
assert.equal(root.toJSON().children.join(""), "one two");
root.unmount();
await until(() => server.clients.size === 0);
assert.equal(mounts(), 2);
assert.deepEqual(events.filter((event) => event.startsWith("close")), ["close 1000 false", "close 1000 false"]);
assert.deepEqual(complaints.filter((text) => !text.startsWith("react-test-renderer is deprecated")), []);
server.close();
console.log("ok");
