// Answers questions, one JSON a line: what jose says to a compact JWS, what RFC 8785 makes of a JSON text.
import { createInterface } from "node:readline";
import { base64url, compactVerify, importJWK } from "jose";

const keys = new Map();

async function jws({ key, alg, algorithms, token }) {
  const name = JSON.stringify(key);
  if (!keys.has(name)) keys.set(name, await importJWK(key, alg));
  const { payload, protectedHeader } = await compactVerify(token, keys.get(name), { algorithms, crit: { a2a: true } });
  return { payload: base64url.encode(payload), header: protectedHeader };
}

// RFC 8785 is defined by these very functions of ECMAScript.
function canonical(value) {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonical)}]`;
  return `{${Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`)}}`;
}

for await (const line of createInterface({ input: process.stdin })) {
  const question = JSON.parse(line);
  let answer;
  try {
    answer = "json" in question ? { canonical: canonical(JSON.parse(question.json)) } : await jws(question);
  } catch (error) {
    answer = { error: error.code ?? error.name };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
