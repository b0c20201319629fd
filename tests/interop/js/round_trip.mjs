// What the JavaScript SDK makes of A2A objects: one `{"kind": ..., "value": ...}` a line in, one object a line out.
import readline from "node:readline";
import * as sdk from "@a2a-js/sdk";

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { kind, value } = JSON.parse(line);
  console.log(JSON.stringify(sdk[kind].toJSON(sdk[kind].fromJSON(value))));
}
