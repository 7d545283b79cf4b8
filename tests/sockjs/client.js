// The real sockjs-client under test: one client, controlled by one JSON object per line in each direction.
//
//   node client.js URL TRANSPORT
//   in   {"send": VALUE}   {"close": true}
//   out  {"event": "open", "transport"}  {"event": "message", "data"}  {"event": "close", "code", "reason"}
'use strict';

const readline = require('node:readline');
const SockJS = require('sockjs-client');

const [url, transport] = process.argv.slice(2);
const tell = (event) => process.stdout.write(JSON.stringify(event) + '\n');
const socket = new SockJS(url, null, { transports: transport });

socket.onopen = () => tell({ event: 'open', transport: socket.transport });
socket.onmessage = (message) => tell({ event: 'message', data: message.data });
socket.onclose = (close) => {
  tell({ event: 'close', code: close.code, reason: close.reason });
  process.exit(0);
};

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const order = JSON.parse(line);
  if ('send' in order) socket.send(JSON.stringify(order.send));
  if (order.close) socket.close();
});
