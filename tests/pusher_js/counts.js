// Clients of pusher-js that report how many subscribers their channels have; and a backend that checks webhooks.
//
//   node counts.js '{"host", "port", "key", "app", "secret", "count", "channels", "auth"}'
//
// channels: of every client. Calls: see below; `client` is a client's number.
"use strict";

const Pusher = require("pusher-js");
const Backend = require("pusher");
const { settings, tell, serve } = require("./lines");

const { host, port, key } = settings;

function client(number) {
  const pusher = new Pusher(key, {
    cluster: "", wsHost: host, wsPort: port, forceTLS: false, enabledTransports: ["ws"],
    channelAuthorization: { endpoint: `${settings.auth}/channel`, params: { user: "ann" }, transport: "ajax" },
  });
  pusher.connection.bind("connected", ({ socket_id }) => tell({ client: number, kind: "connected", socket: socket_id }));
  for (const name of settings.channels) {
    const channel = pusher.subscribe(name);
    channel.bind("pusher:subscription_succeeded", () => tell({ client: number, kind: "subscribed", channel: name }));
    channel.bind("pusher:subscription_count", (data) =>
      tell({ client: number, kind: "count", channel: name, data, property: channel.subscriptionCount }));
  }
  return pusher;
}

const clients = Array.from({ length: settings.count }, (_, number) => client(number));
const backend = new Backend({ appId: settings.app, key, secret: settings.secret, host, port, useTLS: false });

serve({
  unsubscribe: ({ client, channel }) => clients[client].unsubscribe(channel),
  disconnect: ({ client }) => clients[client].disconnect(),
  connect: ({ client }) => clients[client].connect(),
  events: ({ headers, body }) => {
    const webhook = backend.webhook({ headers, rawBody: body });
    return { isValid: webhook.isValid(), events: webhook.isValid() ? webhook.getEvents() : [] };
  },
});
