// Pusher's library for backends, unmodified: each line of standard input is a call of one of its methods.
//
//   node server.js '{"host", "port", "app", "key", "secret", "masterKey"}'
"use strict";

const Pusher = require("pusher");
const { settings, serve } = require("./lines");

const { host, port, app, key, secret, masterKey } = settings;
const pusher = new Pusher({
  appId: app, key, secret, host, port, useTLS: false, encryptionMasterKeyBase64: masterKey,
});

async function answered(request) {
  const response = await request;
  return { status: response.status, text: await response.text() };
}

serve({
  trigger: ({ channels, event, data, params }) => answered(pusher.trigger(channels, event, data, params)),
  triggerBatch: ({ batch }) => answered(pusher.triggerBatch(batch)),
  sendToUser: ({ user, event, data }) => answered(pusher.sendToUser(user, event, data)),
  terminate: ({ user }) => answered(pusher.terminateUserConnections(user)),
  get: ({ path, params }) => answered(pusher.get({ path, params })),
  post: ({ path, params, body }) => answered(pusher.post({ path, params, body })),
  authorizeChannel: ({ socket, channel, data }) => pusher.authorizeChannel(socket, channel, data),
  authenticateUser: ({ socket, user }) => pusher.authenticateUser(socket, user),
  sharedSecret: ({ channel }) => pusher.channelSharedSecret(channel).toString("base64"),
  webhook: ({ headers, body }) => {
    const webhook = pusher.webhook({ headers, rawBody: body });
    return { isValid: webhook.isValid(), events: webhook.isBodyValid() ? webhook.getEvents() : null };
  },
});
