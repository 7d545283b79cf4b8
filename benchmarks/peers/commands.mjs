// What the servers in JavaScript share: `node SERVER.mjs FOLDER TEXT`, and the lines of servers/commands.py.
// FOLDER: where npm has installed the package. TEXT: the message.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const [folder, text] = process.argv.slice(2);
export { text };
export const require = createRequire(`${folder}/`);

/** Tell the port, then run onePass(burst) as the lines of stdin order. Ends the process when stdin ends. */
export function obey(port, onePass) {
  console.log(JSON.stringify({ port }));
  const lines = createInterface({ input: process.stdin });
  lines.on("line", async (line) => {
    const [passes, burst, gapUs] = line.split(" ").slice(1).map(Number);
    for (let pass = 0; pass < passes; pass++) {
      onePass(burst);
      await sleep(gapUs / 1000);
    }
    console.log(JSON.stringify({ passes }));
  });
  lines.on("close", () => process.exit());
}
