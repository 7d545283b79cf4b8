// Shared by the programs of this folder: settings from the command line, events as lines of JSON on standard output, and
// calls as lines of standard input, {"call": NAME, ...}. A program ends with its standard input.
"use strict";

const readline = require("node:readline");

const tell = (event) => process.stdout.write(JSON.stringify(event) + "\n");

function serve(calls) {
  readline.createInterface({ input: process.stdin })
    .on("line", async (line) => {
      const { call, ...about } = JSON.parse(line);
      try {
        tell({ kind: "result", of: call, result: await calls[call](about) });
      } catch (error) {
        tell({ kind: "result", of: call, error: error.status ?? String(error) });
      }
    })
    .on("close", () => process.exit(0));
}

module.exports = { settings: JSON.parse(process.argv[2]), tell, serve };
