// Clients of pusher-js, and Pusher's library for backends.
//
//   node clients.js '{"host", "port", "key", "app", "secret", "count", "channels", "users", "auth", "options"}'
//
// channels: of every client. users: the name of each client's user, which is sent to the auth server at the URL `auth`.
// options: further ones of pusher-js. Calls: see below; `client` is a client's number.
"use strict";

const Pusher = require("pusher-js");
const Backend = require("pusher");
const { settings, tell, serve } = require("./lines");

const EVENTS = ["number", "news", "pusher:cache_miss", "client-typing"];
const { host, port, key } = settings;

function client(number) {
  const note = (kind, about) => tell({ client: number, kind, at: Date.now() / 1000, ...about });
  const user = { params: { user: settings.users?.[number] ?? "" }, transport: "ajax" };
  const pusher = new Pusher(key, {
    cluster: "", wsHost: host, wsPort: port, forceTLS: false, enabledTransports: ["ws"],
    channelAuthorization: { endpoint: `${settings.auth}/channel`, ...user },
    userAuthentication: { endpoint: `${settings.auth}/user`, ...user },
    ...settings.options,
  });
  pusher.connection.bind("state_change", ({ current }) => note("state", { state: current }));
  pusher.connection.bind("connected", ({ socket_id }) => note("connected", { socket: socket_id }));
  pusher.connection.bind("connecting_in", (delay) => note("connecting in", { delay }));
  pusher.connection.bind("error", (error) => note("error", { code: (error.error ?? error).data?.code ?? null }));
  pusher.connection.bind("message", ({ event }) => event === "pusher:pong" && note("pong"));
  pusher.user.bind("news", (data) => note("to user", { data }));
  for (const event of ["online", "offline"]) {
    pusher.user.watchlist.bind(event, ({ name, user_ids }) => note("watchlist", { event, name, users: user_ids }));
  }
  pusher.bind("pusher:signin_success", ({ user_data }) => note("signed in", { user: JSON.parse(user_data) }));

  function subscribe(name) {
    const channel = pusher.subscribe(name);
    channel.bind("pusher:subscription_succeeded", () =>
      note("subscribed", { channel: name, members: channel.members && described(channel.members) }));
    channel.bind("pusher:subscription_error", ({ type, status }) => note("refused", { channel: name, type, status }));
    channel.bind("pusher:member_added", ({ id, info }) => note("added", { channel: name, id, info }));
    channel.bind("pusher:member_removed", ({ id }) => note("removed", { channel: name, id }));
    for (const event of EVENTS) {
      channel.bind(event, (data, about) => note("event", { channel: name, event, data, user: about?.user_id }));
    }
  }

  (settings.channels ?? []).forEach(subscribe);
  return { pusher, subscribe };
}

function described(members) {
  const each = {};
  members.each(({ id, info }) => (each[id] = info));
  return { count: members.count, me: members.me, each };
}

async function answered(response) {
  return { status: response.status, body: await response.json() };
}

const clients = Array.from({ length: settings.count }, (_, number) => client(number));
const backend = new Backend({
  appId: settings.app, key, secret: settings.secret, host, port, useTLS: false,
  encryptionMasterKeyBase64: settings.masterKey,
});

serve({
  subscribe: ({ client, channel }) => clients[client].subscribe(channel),
  unsubscribe: ({ client, channel }) => clients[client].pusher.unsubscribe(channel),
  trigger: ({ client, channel, data }) => clients[client].pusher.channel(channel).trigger("client-typing", data),
  members: ({ client, channel }) => described(clients[client].pusher.channel(channel).members),
  signin: ({ client }) => clients[client].pusher.signin(),
  connect: ({ client }) => clients[client].pusher.connect(),
  disconnect: ({ client }) => clients[client].pusher.disconnect(),
  // the backend's
  publish: async ({ channels, data, params }) => answered(await backend.trigger(channels, "news", data, params)),
  batch: async ({ batch }) => answered(await backend.triggerBatch(batch)),
  get: async ({ path, params }) => answered(await backend.get({ path, params })),
  sendToUser: async ({ user, data }) => answered(await backend.sendToUser(user, "news", data)),
  terminate: async ({ user }) => answered(await backend.terminateUserConnections(user)),
});
