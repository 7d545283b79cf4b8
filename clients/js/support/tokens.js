// A client of the identity ann with subscription tokens, for tests against real nodes. It reads commands and writes
// events, one JSON object per line. At the end of its input it closes the client, and nothing keeps the process alive.
//
//   node tokens.js URL SECRET
//   in   {"subscribe": CHANNEL, "gives": [STEP, ...]}   one step for each call of the function; the last is repeated.
//        STEP: seconds until the token expires, "null", "throw", "hang", or "other": a token for another channel
//   out  {"event", "channel", ...}: "token" {step, id}, "ready", "refused" {code}, "message" {message}, "gap", "recovered",
//        "unsubscribed" {code, reason}, "error" {code}, "open", "close" {code}; "subscribed": the backend has subscribed it

import { createHmac } from "node:crypto";
import { createInterface } from "node:readline";

import { WebSocket } from "ws";

import { connect } from "../src/snorky.js";

const [url = "", secret = ""] = process.argv.slice(2);
const tell = (/** @type {string} */ event, /** @type {object} */ more = {}) =>
  process.stdout.write(`${JSON.stringify({ event, ...more })}\n`);

/** A JWT (RFC 7519) of ann. @param {number} seconds @param {object} claims */
function signed(seconds, claims) {
  const nowS = Date.now() / 1_000;
  const parts = [{ alg: "HS256", typ: "JWT" }, { sub: "ann", iat: nowS, exp: nowS + seconds, ...claims }];
  const text = parts.map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".");
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
}

const client = connect(url, { WebSocket, token: signed(600, {}), backoffBaseMs: 200, backoffMaxMs: 2_000, callTimeoutMs: 2_000 });
client.on("open", () => tell("open"));
client.on("close", ({ code }) => tell("close", { code }));
client.on("error", ({ error, channel }) => tell("error", { channel, code: error.code }));
client.on("subscribed", (subscription) => {
  tell("subscribed", { channel: subscription.channel });
  subscription.handle((message) => tell("message", { channel: subscription.channel, message }));
  tellEvents(subscription);
});
let tokens = 0;

/** @param {import("../src/snorky.js").Subscription} subscription */
function tellEvents(subscription) {
  const { channel } = subscription;
  subscription.on("gap", () => tell("gap", { channel }));
  subscription.on("recovered", () => tell("recovered", { channel }));
  subscription.on("unsubscribed", ({ code, reason }) => tell("unsubscribed", { channel, code, reason }));
}

/** @param {string} channel @param {(number | string)[]} gives */
function subscribe(channel, gives) {
  const subscription = client.subscribe(channel, (message) => tell("message", { channel, message }), {
    recover: true,
    token() {
      const step = gives.length > 1 ? gives.shift() : gives[0];
      const id = `t${++tokens}`;
      tell("token", { channel, step, id });
      if (step === "hang") return new Promise(() => {});
      if (step === "throw") throw new Error("The backend is down");
      if (step === "null") return null;
      return step === "other" ? signed(60, { channel: "other", jti: id }) : signed(Number(step), { channel, jti: id });
    },
  });
  tellEvents(subscription);
  subscription.ready.then(() => tell("ready", { channel }), ({ code }) => tell("refused", { channel, code }));
}

const input = createInterface({ input: process.stdin });
input.on("line", (line) => {
  const order = JSON.parse(line);
  if (order.subscribe) subscribe(order.subscribe, order.gives);
});
input.on("close", () => client.close());
