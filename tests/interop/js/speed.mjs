// How long jose takes, in CPU seconds of all threads: {what: "sign" | "verify", bytes, times}, one JSON a line.
import { createInterface } from "node:readline";
import { CompactSign, compactVerify, generateKeyPair } from "jose";

const { publicKey, privateKey } = await generateKeyPair("ES256");
const header = { alg: "ES256", typ: "a2a-req+jws", a2a: { v: 1, jti: "x".repeat(22) } };
const sign = (payload) => new CompactSign(payload).setProtectedHeader(header).sign(privateKey);

for await (const line of createInterface({ input: process.stdin })) {
  const { what, bytes, times } = JSON.parse(line);
  const payload = new Uint8Array(bytes).fill(120);
  const token = await sign(payload);
  const once = { sign: () => sign(payload), verify: () => compactVerify(token, publicKey, { algorithms: ["ES256"] }) };
  const before = process.cpuUsage();
  for (let i = 0; i < times; i++) await once[what]();
  const { user, system } = process.cpuUsage(before);
  process.stdout.write(`${JSON.stringify({ seconds: (user + system) / 1e6 / times })}\n`);
}
