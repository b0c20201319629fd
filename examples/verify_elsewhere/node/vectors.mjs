// node vectors.mjs ../../../tests/vectors/http.json: one line for each vector, "ok" or the step that refused it.
import { readFileSync } from "node:fs";
import { verify } from "./verify.mjs";

const { now, bundles, vectors } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const seen = new Set();
for (const { name, jws, body, ...facts } of vectors) {
  const received = { ...facts, body: Buffer.from(body, "base64url"), bundles, now, seen };
  const said = await verify(jws, received).then(() => "ok", ({ step, message }) => step ?? `crashed: ${message}`);
  console.log(`${said}\t${name}`);
}
