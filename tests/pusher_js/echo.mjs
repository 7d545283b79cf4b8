// Clients of Laravel Echo over pusher-js, as Laravel's documentation sets them up.
//
//   node echo.mjs '{"host", "port", "key", "broadcaster": "pusher" | "reverb", "auth"}'
//
// The call `enter` makes a client of a user, which subscribes to the channel, the private and the presence channel "orders".
import Echo from "laravel-echo";
import Pusher from "pusher-js";
import lines from "./lines.js";

const { settings, tell, serve } = lines;

function client(user, number) {
  const note = (kind, about) => tell({ client: number, kind, ...about });
  const echo = new Echo({
    broadcaster: settings.broadcaster,
    Pusher,
    key: settings.key,
    ...(settings.broadcaster === "pusher" ? { cluster: "mt1" } : {}),
    wsHost: settings.host,
    wsPort: settings.port,
    wssPort: settings.port,
    forceTLS: false,
    enabledTransports: ["ws", "wss"],
    authEndpoint: `${settings.auth}/channel`,
    auth: { headers: {}, params: { user } },
    bearerToken: "token-of-a-session",
  });
  echo.channel("orders")
    .subscribed(() => note("subscribed", { to: "channel" }))
    .listen("OrderShipped", (data) => note("shipped", { data }))
    .listen(".order.paid", (data) => note("paid", { data }))
    .listenToAll((event, data) => note("any", { event, data }));
  echo.private("orders")
    .subscribed(() => note("subscribed", { to: "private" }))
    .error(({ status }) => note("refused", { to: "private", status }))
    .listen("Orders.Cancelled", (data) => note("cancelled", { data }))
    .notification((data) => note("notification", { data }))
    .listenForWhisper("typing", (data) => note("whisper", { data }));
  echo.join("orders")
    .here((members) => note("here", { members }))
    .joining((member) => note("joining", { member }))
    .leaving((member) => note("leaving", { member }))
    .listenForWhisper("typing", (data) => note("whisper in the room", { data }));
  return echo;
}

const clients = [];
serve({
  enter: ({ user }) => void clients.push(client(user, clients.length)),
  socketId: ({ client }) => clients[client].socketId(),
  status: ({ client }) => clients[client].connectionStatus(),
  whisper: ({ client, data }) => void clients[client].private("orders").whisper("typing", data),
  whisperInRoom: ({ client, data }) => void clients[client].join("orders").whisper("typing", data),
  forbidden: ({ client }) =>
    void clients[client].private("forbidden").error(({ status }) => tell({ client, kind: "refused", status })),
  leave: ({ client }) => void clients[client].leave("orders"),
});
