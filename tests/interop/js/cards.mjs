// Agent Cards as @a2a-js/sdk sees them: JSON list of questions on stdin, list of answers on stdout.
import { canonicalizeAgentCard, generateAgentCardSignature, verifyAgentCardSignature } from "@a2a-js/sdk";
import { importJWK } from "jose";

console.debug = () => {}; // the SDK tells it of every signature that does not verify

const commands = {
  canonical: async ({ card }) => canonicalizeAgentCard(card),
  sign: async ({ card, key, header }) => generateAgentCardSignature(await importJWK(key, header.alg), header)(card),
  verify: async ({ card, key, alg }) => verifyAgentCardSignature(async () => importJWK(key, alg))(card),
};

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
