// Clients for tests against real nodes, in one process. It reads commands and writes events, one JSON object per line.
//
//   node crowd.js URL COUNT CHANNELS ENCODING [TOKEN]   client N recovers the channel kept:(N modulo CHANNELS)
//   TOKEN: a token, or hs256:SECRET:SECONDS: a function that creates tokens of ann, valid for that time
//   out  {"event": "token"}                             each time that the function is called
//   out  {"event": "subscribed"} when all are    {"event": "close", "client", "code", "willReconnect"}
//   in   {"report": true}                        out  {"event": "report", "heard": [[...], ...], "states", "gaps", "opens", "moves", "queued"}
//   in   {"publish": [CHANNEL, FROM, TO]}        client 0 publishes these numbers
//                                                out  {"event": "published", "outcomes": {CODE or "done": COUNT}}
//   in   {"close": true}

import { createHmac } from "node:crypto";
import { createInterface } from "node:readline";

import { WebSocket } from "ws";

import { connect, json, msgpack } from "../src/snorky.js";

const [url = "", count = "1", channels = "1", encoding = "json", token] = process.argv.slice(2);
const tell = (/** @type {object} */ event) => process.stdout.write(`${JSON.stringify(event)}\n`);

/** A JWT (RFC 7519) of ann. @param {string} secret @param {number} seconds */
function signed(secret, seconds) {
  tell({ event: "token" });
  const nowS = Date.now() / 1_000;
  const parts = [{ alg: "HS256", typ: "JWT" }, { sub: "ann", iat: nowS, exp: nowS + seconds }];
  const text = parts.map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".");
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
}

const [kind, secret = "", seconds] = token?.split(":") ?? [];
const source = kind === "hs256" ? async () => signed(secret, Number(seconds)) : token;

let [gaps, opens, moves] = [0, 0, 0];
/** @type {unknown[][]} by client */
const heard = [];
const clients = Array.from({ length: Number(count) }, (_, number) => {
  const client = connect(url, {
    WebSocket, token: source, encoding: encoding === "msgpack" ? msgpack : json, backoffBaseMs: 200, backoffMaxMs: 2_000,
  });
  client.on("open", ({ isMove }) => {
    opens += 1;
    if (isMove) moves += 1;
  });
  client.on("close", ({ code, willReconnect }) => tell({ event: "close", client: number, code, willReconnect }));
  /** @type {unknown[]} */
  const mine = [];
  heard.push(mine);
  const channel = `kept:${number % Number(channels)}`;
  const subscription = client.subscribe(channel, (message) => mine.push(message), { recover: true });
  subscription.on("gap", () => (gaps += 1));
  return { client, subscription };
});

await Promise.all(clients.map(({ subscription }) => subscription.ready));
tell({ event: "subscribed" });

/** @param {[string, number, number]} order */
async function publish([channel, from, to]) {
  /** @type {Record<string, number>} */
  const outcomes = {};
  const publications = Array.from({ length: to - from }, async (_, index) => {
    const outcome = await clients[0]?.client.publish(channel, from + index).then(() => "done", ({ code }) => code);
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  });
  await Promise.all(publications);
  tell({ event: "published", outcomes });
}

createInterface({ input: process.stdin }).on("line", (line) => {
  const order = JSON.parse(line);
  if (order.publish) void publish(order.publish);
  if (order.report) {
    const queued = clients.reduce((sum, { client }) => sum + client.queued, 0);
    const states = clients.map(({ client, subscription }) => `${client.state} at ${subscription.position}`);
    tell({ event: "report", heard, states, gaps, opens, moves, queued });
  }
  if (order.close) {
    for (const { client } of clients) client.close();
    process.exit(0);
  }
});
