// A component with a client while it is mounted. In strict mode React mounts it, unmounts it and mounts it again.

import { createElement, StrictMode, useEffect, useState } from "react";
import { connect } from "snorky";

/** @param {{url: string, WebSocket: any, tell: (event: string) => void}} props */
function News({ url, WebSocket, tell }) {
  const [messages, setMessages] = useState([]);
  useEffect(() => {
    const client = connect(url, { WebSocket });
    client.on("error", ({ error }) => tell(`error ${error.message}`));
    client.on("close", ({ code, willReconnect }) => tell(`close ${code} ${willReconnect}`));
    client.subscribe("news", (message) => setMessages((before) => [...before, message]));
    tell("mounted");
    return () => client.close();
  }, [url]);
  useEffect(() => tell(`shows ${messages.join(" ")}`), [messages]);
  return createElement("p", null, messages.join(" "));
}

/** @param {any} props */
export const page = (props) => createElement(StrictMode, null, createElement(News, props));
