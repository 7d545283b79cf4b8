/**
 * Client of a Snorky gateway. No build step: import this file.
 *
 *     import { connect } from "./snorky.js";
 *
 *     const client = connect("wss://example.org/ws");
 *     const news = client.subscribe("news", (message) => console.log(message));
 *     await news.ready;
 *     await client.publish("news", { headline: "It works" });
 *     console.log(await client.call("gateway", "info"));
 *
 * The client reconnects by itself (exponential backoff, full jitter) and subscribes again. With `{recover: true}` a
 * subscription gets the messages it missed, or an event `gap`. Close codes 4500-4999 end the client.
 * For MessagePack instead of JSON: `connect(url, { encoding: msgpack })`.
 */

import { Client } from "./client.js";

/** @typedef {import("./wire/json.js").Codec} Codec */
/** @typedef {import("./options.js").ClientOptions} ClientOptions */
/** @typedef {import("./client.js").ClientEvents} ClientEvents */
/** @typedef {import("./client.js").ClientState} ClientState */
/** @typedef {import("./wire/connection.js").Notification} Notification */
/** @typedef {import("./channels/topic.js").Gap} Gap */
/** @typedef {import("./channels/topic.js").MessageHandler} MessageHandler */
/** @typedef {import("./channels/topic.js").MessageInfo} MessageInfo */
/** @typedef {import("./channels/topic.js").Unsubscribed} Unsubscribed */
/** @typedef {import("./session/token.js").TokenSource} TokenSource */
/** @typedef {import("./session/grant.js").SubscriptionTokenSource} SubscriptionTokenSource */

export { canonical, channelName } from "./wire/canonical.js";
export { Client } from "./client.js";
export { SnorkyError } from "./error.js";
export { json } from "./wire/json.js";
export { msgpack } from "./wire/msgpack.js";
export { ServerSubscription, Subscription } from "./channels/subscription.js";

/**
 * Connect to a gateway. Returns at once; calls wait for the connection.
 *
 * Throws TypeError: the URL or an option is not valid.
 *
 * @param {string | URL} url of the WebSocket endpoint; in a browser also relative: "/ws"
 * @param {import("./options.js").ClientOptions} [options]
 */
export function connect(url, options) {
  return new Client(url, options);
}
