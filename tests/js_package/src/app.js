// An application of the packed client, as a bundler takes it.

import { connect } from "snorky";

/** Publish, and receive it. @param {string} url @param {any} WebSocket */
export async function run(url, WebSocket) {
  const client = connect(url, { WebSocket });
  const heard = new Promise((resolve) => client.subscribe("news", resolve));
  await client.publish("news", "from the bundle");
  const message = await heard;
  client.close();
  return message;
}
