// Clients of centrifuge-js, one event a line of JSON on standard output; ends with standard input.
//
//   node clients.js '{"url", "form": "json" | "protobuf", "count", "channel", "transport", ...}'
//
// transport: "websocket" (default), "http_stream" or "sse". connectionTokens, channelTokens: lists of tokens, given out one
// after another, the last one again and again; absent: no tokens. Lines of standard input are calls, made by the first
// client: {"call": "publish", "data"} and others below.
"use strict";

const readline = require("node:readline");
const WebSocket = require("ws");
const settings = JSON.parse(process.argv[2]);
const { Centrifuge } = require(settings.form === "protobuf" ? "centrifuge/build/protobuf" : "centrifuge");

const encode = (value) => (settings.form === "protobuf" ? new TextEncoder().encode(JSON.stringify(value)) : value);
const decode = (data) => (settings.form === "protobuf" ? JSON.parse(new TextDecoder().decode(data)) : data);
const tell = (event) => process.stdout.write(JSON.stringify(event) + "\n");

function giver(tokens, kind, number) {
  let next = 0;
  return async () => {
    tell({ client: number, kind });
    next += 1;
    return tokens[Math.min(next, tokens.length) - 1];
  };
}

function client(number) {
  const options = { websocket: WebSocket, minReconnectDelay: 50, maxReconnectDelay: 500 };
  if (settings.connectionTokens) options.getToken = giver(settings.connectionTokens, "connection token", number);
  let endpoint = settings.url;
  if (settings.transport && settings.transport !== "websocket") {
    const base = settings.url.replace("ws://", "http://").replace("/connection/websocket", "");
    endpoint = [{ transport: settings.transport, endpoint: `${base}/connection/${settings.transport}` }];
    options.emulationEndpoint = `${base}/emulation`;
    options.eventsource = require("eventsource");
  }
  const centrifuge = new Centrifuge(endpoint, options);
  const note = (kind, about) => tell({ client: number, kind, ...about });
  centrifuge.on("connected", (context) => note("connected", { id: context.client }));
  centrifuge.on("connecting", (context) => note("connecting", { code: context.code }));
  centrifuge.on("disconnected", (context) => note("disconnected", { code: context.code }));
  centrifuge.on("subscribed", (context) =>
    note("server subscribed", {
      channel: context.channel, wasRecovering: context.wasRecovering, recovered: context.recovered,
    }));
  centrifuge.on("publication", (context) => note("server pub", { channel: context.channel, data: decode(context.data) }));
  let subscription = null;
  if (settings.channel) {
    const with_token = settings.channelTokens ? { getToken: giver(settings.channelTokens, "channel token", number) } : {};
    subscription = centrifuge.newSubscription(settings.channel, { minResubscribeDelay: 50, ...with_token });
    subscription.on("subscribed", (context) =>
      note("subscribed", { wasRecovering: context.wasRecovering, recovered: context.recovered }));
    subscription.on("unsubscribed", (context) => note("unsubscribed", { code: context.code }));
    subscription.on("publication", (context) =>
      note("pub", {
        data: decode(context.data), offset: context.offset, info: plain(context.info ?? null), tags: context.tags,
      }));
    subscription.on("join", (context) => note("join", { info: plain(context.info) }));
    subscription.on("leave", (context) => note("leave", { info: context.info }));
    subscription.subscribe();
  }
  centrifuge.connect();
  return { centrifuge, subscription };
}

const clients = Array.from({ length: settings.count }, (_, number) => client(number));
const { centrifuge, subscription } = clients[0];
const calls = {
  publish: ({ data }) => subscription.publish(encode(data)),
  history: ({ limit, reverse }) => subscription.history({ limit, reverse }),
  presence: () => subscription.presence(),
  presenceStats: () => subscription.presenceStats(),
  rpc: ({ method, data }) => centrifuge.rpc(method, encode(data)),
  unsubscribe: async () => subscription.unsubscribe(),
  subscribe: async () => subscription.subscribe(),
};

function plain(value) {
  if (value instanceof Uint8Array) return value.length ? decode(value) : null;
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, plain(each)]));
}

readline.createInterface({ input: process.stdin })
  .on("line", async (line) => {
    const { call, ...about } = JSON.parse(line);
    try {
      tell({ kind: "result", of: call, result: plain(await calls[call](about)) });
    } catch (error) {
      tell({ kind: "result", of: call, error: error.code ?? String(error) });
    }
  })
  .on("close", () => process.exit(0));
