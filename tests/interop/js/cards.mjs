// Agent Cards as @a2a-js/sdk sees them: JSON list of questions on stdin, list of answers on stdout.
import { AgentCard, canonicalizeAgentCard, generateAgentCardSignature, verifyAgentCardSignature } from "@a2a-js/sdk";
import { DefaultAgentCardResolver } from "@a2a-js/sdk/client";
import { importJWK } from "jose";

console.debug = () => {}; // the SDK tells it of every signature that does not verify

const commands = {
  canonical: async ({ card }) => canonicalizeAgentCard(card),
  sign: async ({ card, key, header }) => generateAgentCardSignature(await importJWK(key, header.alg), header)(card),
  verify: async ({ card, key, alg }) => verifyAgentCardSignature(async () => importJWK(key, alg))(card),
  read: async ({ card }) => AgentCard.toJSON(resolver.normalizeAgentCard(card)), // of A2A 1.0 or 0.3, as 1.0
};
const resolver = new DefaultAgentCardResolver({ legacyCompat: { enabled: true } });

let text = "";
for await (const chunk of process.stdin) text += chunk;
const answers = [];
for (const question of JSON.parse(text)) {
  try {
    answers.push({ ok: (await commands[question.do](question)) ?? true });
  } catch (error) {
    answers.push({ error: error.message });
  }
}
process.stdout.write(JSON.stringify(answers));
