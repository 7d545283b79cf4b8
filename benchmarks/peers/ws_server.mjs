// ws: it has no broadcast, so a loop of send() with one buffer, as its documentation shows.
import { obey, require, text } from "./commands.mjs";

const { WebSocketServer } = require("ws");
const buffer = Buffer.from(text);
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => {
  obey(server.address().port, (burst) => {
    for (let i = 0; i < burst; i++) {
      for (const client of server.clients) client.send(buffer, { binary: false });
    }
  });
});
