// ML-DSA by noble, which shares no code with OpenSSL. Reads a list of questions, writes the list of answers.

import { ml_dsa44, ml_dsa65 } from "@noble/post-quantum/ml-dsa.js";

const ALGORITHMS = { "ML-DSA-44": ml_dsa44, "ML-DSA-65": ml_dsa65 };
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64url"));
const text = (data) => Buffer.from(data).toString("base64url");

function answer({ alg, seed, pub, data, signature }) {
  const algorithm = ALGORITHMS[alg];
  if (seed === undefined) return algorithm.verify(bytes(signature), bytes(data), bytes(pub));
  const keys = algorithm.keygen(bytes(seed)); // the `priv` of a JWK (RFC 9964) is the seed
  return { pub: text(keys.publicKey), signature: text(algorithm.sign(bytes(data), keys.secretKey)) };
}

let input = "";
for await (const chunk of process.stdin) input += chunk;
console.log(JSON.stringify(JSON.parse(input).map(answer)));
