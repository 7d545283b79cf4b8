/**
 * The demo page: two clients of the node that serves it, and commands to publish from a shell.
 *
 * URL parameters: `channel` is the channel of both clients (default "demo"), `panel` a or b shows only one of them,
 * `backend` is the node's private address, for the curl command.
 */

import { Pane } from "./pane.js";

const parameters = new URLSearchParams(location.search);
const channel = parameters.get("channel") || "demo";
const backend = parameters.get("backend") || "http://127.0.0.1:8003";
const url = new URL("ws", document.baseURI);

const panel = parameters.get("panel")?.toUpperCase();
const letters = panel === "A" || panel === "B" ? [panel] : ["A", "B"];
const panes = letters.map((letter) => new Pane({ letter, url, channel, onChannel: showCommands, onVersion: showVersion }));
for (const pane of panes) {
  element("panes").append(pane.root);
  pane.connect();
}
showCommands(channel);

/** @param {string} version */
function showVersion(version) {
  for (const place of document.querySelectorAll("[data-testid=version]")) place.textContent = version;
}

/** Show the commands that publish to a channel. @param {string} channel */
function showCommands(channel) {
  const envelope = {
    service: "pubsub_backend",
    message: { command: "publish", params: { channel, message: "hello" } },
  };
  const redisName = channel.startsWith("~") ? `~${JSON.stringify(channel)}` : channel;
  const commands = {
    "Command line": `snorky publish ${quoted(channel)} '"hello"'`,
    "Backend, by HTTP": `curl ${backend}/backend -d ${quoted(JSON.stringify(envelope))}`,
    "Any Redis client": `redis-cli PUBLISH ${quoted(`snorky:{pubsub:${redisName}}`)} '"hello"'`,
  };
  element("commands").replaceChildren(...Object.entries(commands).map(([what, command]) => commandItem(what, command)));
}

/** @param {string} what @param {string} command */
function commandItem(what, command) {
  const item = document.createElement("li");
  const label = document.createElement("span");
  label.className = "what";
  label.textContent = what;
  const code = document.createElement("code");
  code.dataset.testid = "command";
  code.textContent = command;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy: ${what}`);
  button.addEventListener("click", () => void copy(command, code, button));
  item.append(label, code, button);
  return item;
}

/** @param {string} text @param {HTMLElement} source @param {HTMLElement} button */
async function copy(text, source, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection()?.selectAllChildren(source); // without HTTPS or permission there is no clipboard
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1_500);
}

/** Quote one word for a POSIX shell. @param {string} word */
function quoted(word) {
  return /^[\w.:/-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** @param {string} id */
function element(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`No #${id} on the page`);
  return found;
}
