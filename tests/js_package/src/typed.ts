// Type-checked with "strict" against the packed client, never run.

import {
  connect, msgpack, SnorkyError, type Client, type ClientEvents, type ClientOptions, type Codec, type MessageInfo, type Subscription,
  type SubscriptionTokenSource, type Unsubscribed,
} from "snorky";
import { decode, encode, msgpack as same } from "snorky/msgpack.js";

const options: ClientOptions = { token: async () => "t", encoding: msgpack, publishMaxAgeMs: 1_000 };
const client: Client = connect(new URL("wss://example.org/ws"), options);
const codec: Codec = same;
const subscription: Subscription = client.subscribe(
  { room: 1 },
  (message: unknown, info: MessageInfo) => console.log(message, info.offset?.toFixed(), info.position),
  { recover: true },
);
const mayBeRefused: SubscriptionTokenSource = async (channel) => (channel === "orders" ? "t" : null);
const orders: Subscription = client.subscribe("orders", () => {}, { token: mayBeRefused, recover: true });
orders.on("unsubscribed", ({ code, reason }: Unsubscribed) => console.log(code.length, reason.length));
client.subscribe("orders", () => {}, { token: "t" });
client.subscribe("orders", () => {}, { token: () => "t" });
const stop: () => void = subscription.on("gap", ({ cause, position }) => console.log(cause === "live", position));
client.on("close", ({ code, reason, willReconnect }) => console.log(code + 1, reason.length, !willReconnect));
client.on("error", ({ error }: ClientEvents["error"]) => console.log(error.code, error.retryAfterMs));
const state: "connecting" | "open" | "waiting" | "closed" = client.state;

export async function use(): Promise<string> {
  await subscription.ready;
  await client.publish("news", { n: 1 }, { key: "k" });
  try {
    await client.call("rpc", "x", { a: 1 }, { timeoutMs: 5 });
  } catch (error) {
    if (error instanceof SnorkyError) return error.code;
  }
  stop();
  return `${codec.name} ${state} ${String(decode(encode(1)))}`;
}

// @ts-expect-error there is no such event
client.on("opened", () => {});
// @ts-expect-error a number is no URL
connect(1);
// @ts-expect-error there is no such option
connect("wss://example.org/ws", { retries: 3 });
// @ts-expect-error a position is a string
client.subscribe("news", () => {}, { recover: 7 });
// @ts-expect-error a token is a string, or a function
client.subscribe("news", () => {}, { token: 7 });
// @ts-expect-error the function gives a string or null
client.subscribe("news", () => {}, { token: async () => undefined });
