// What jose says to each of many tokens: {key, tokens} on stdin, a list of "" (verified) or error codes on stdout.
import { compactVerify, importJWK } from "jose";

let text = "";
for await (const chunk of process.stdin) text += chunk;
const { key, tokens } = JSON.parse(text);
const imported = await importJWK(key, "ES256");
const answers = [];
for (const token of tokens) {
  try {
    await compactVerify(token, imported, { algorithms: ["ES256"], crit: { a2a: true } });
    answers.push("");
  } catch (error) {
    answers.push(error.code ?? error.name);
  }
}
process.stdout.write(JSON.stringify(answers));
