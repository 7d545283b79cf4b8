// Socket.IO: emit to a room. The receiver answers no pings of Engine.IO, so there are none.
import { createServer } from "node:http";
import { obey, require, text } from "./commands.mjs";

const { Server } = require("socket.io");
const http = createServer();
const io = new Server(http, { transports: ["websocket"], serveClient: false, pingInterval: 3_600_000 });
const message = JSON.parse(text);
io.on("connection", (socket) => socket.join("bench"));
http.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => {
  obey(http.address().port, (burst) => {
    for (let i = 0; i < burst; i++) io.to("bench").emit("message", message);
  });
});
