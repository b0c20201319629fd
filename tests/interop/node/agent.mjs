// An agent on Node's own https. Its files are: the roots it trusts (PEM, with the revocation lists), chain and key.
//
//   agent.mjs get URL SERVER-ID TRUST [CHAIN KEY]    prints the answer, or an error code on stderr
//   agent.mjs serve TRUST CHAIN KEY                  prints its port, and answers with the caller's SPIFFE ID
import { readFileSync } from "node:fs";
import https from "node:https";
import tls from "node:tls";

const [verb, ...rest] = process.argv.slice(2);

function options(trust, chain, key) {
  const text = readFileSync(trust, "latin1");
  const blocks = (kind) => text.match(new RegExp(`-----BEGIN ${kind}-----[^]*?-----END ${kind}-----`, "g")) ?? [];
  const crl = blocks("X509 CRL");
  return {
    ca: blocks("CERTIFICATE"),
    ...(crl.length ? { crl } : {}),
    ...(chain ? { cert: readFileSync(chain), key: readFileSync(key) } : {}),
  };
}

// subjectaltname is "URI:spiffe://..., DNS:..."; a certificate of an agent has one URI.
function spiffe(certificate) {
  const ids = (certificate.subjectaltname ?? "").split(", ").filter((name) => name.startsWith("URI:"));
  return ids.length === 1 ? ids[0].slice("URI:".length) : "";
}

function get(url, id, ...files) {
  const checkServerIdentity = (host, certificate) =>
    tls.checkServerIdentity(host, certificate) ??
    (spiffe(certificate) === id ? undefined : Object.assign(new Error("another agent"), { code: "OTHER_AGENT" }));
  https
    .get(url, { agent: false, checkServerIdentity, ...options(...files) }, (answer) => answer.pipe(process.stdout))
    .on("error", (error) => {
      console.error(error.code);
      process.exitCode = 1;
    });
}

function serve(...files) {
  const settings = { requestCert: true, rejectUnauthorized: true, ...options(...files) };
  const server = https.createServer(settings, (request, answer) => {
    answer.end(spiffe(request.socket.getPeerCertificate()));
  });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
}

({ get, serve })[verb](...rest);
