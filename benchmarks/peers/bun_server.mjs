// Bun: its own WebSocket server and pub/sub.
import { obey, text } from "./commands.mjs";

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch(request, server) {
    if (!server.upgrade(request)) return new Response("no WebSocket", { status: 400 });
  },
  websocket: {
    idleTimeout: 0,
    sendPings: false,
    open(socket) { socket.subscribe("bench"); },
    message() {},
  },
});
obey(server.port, (burst) => {
  for (let i = 0; i < burst; i++) server.publish("bench", text);
});
