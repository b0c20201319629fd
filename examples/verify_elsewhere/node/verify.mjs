// Verifies JWS-Signature with `jose` and `@peculiar/x509`; the steps are those of ../README.md.
import "reflect-metadata";
import * as x509 from "@peculiar/x509";
import { createHash } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { base64url, compactVerify } from "jose";
const MEMBERS = { "a2a-req+jws": ["htm", "htu", "ver", "ext"], "a2a-res+jws": ["st", "req"] };
const USAGE = { "a2a-req+jws": "1.3.6.1.5.5.7.3.2", "a2a-res+jws": "1.3.6.1.5.5.7.3.1" }; // of a client, of a server
const UNDERSTOOD = ["2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.37"]; // critical extensions of certificates
const SPIFFE_ID = /^spiffe:\/\/([a-z0-9._-]{1,255})(\/(?!\.{1,2}(\/|$))[A-Za-z0-9._-]+)+$/;
const { digitalSignature, keyCertSign, cRLSign } = x509.KeyUsageFlags, USES = digitalSignature | keyCertSign | cRLSign;
const UTF_8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const quotes = (json) => json.replace(/\\./g, "").split('"').length; // fewer after parsing: a member stood there twice
const need = (ok, step, why) => { if (!ok) throw Object.assign(new Error(`step ${step}: ${why}`), { step }); };
const attempt = async (step, what, make) => make().catch((error) => need(false, step, `${what}: ${error.message}`));

/** The SPIFFE ID of who said `body` to `audience` in the surroundings `bound`; or an error with a `step`. */
export async function verify(jws, { typ, body, audience, cty, bound, from, algorithms, bundles, now, seen }) {
  const parts = jws.split(".");
  need(jws.length <= 8192 && parts.length === 3 && parts[1] === "", 0, "not a detached JWS, or too large");
  const bytes = await attempt(1, "base64url", async () => parts.map((part) => base64url.decode(part)));
  need(bytes.every((part, i) => base64url.encode(part) === parts[i]), 1, "another spelling of base64url");
  const text = await attempt(1, "UTF-8", async () => UTF_8.decode(bytes[0]));
  const header = await attempt(1, "JSON", async () => JSON.parse(text));
  need(header?.constructor === Object && quotes(JSON.stringify(header)) === quotes(text), 1, "not one strict object");
  need(header.typ === typ && algorithms.includes(header.alg), 2, "typ or alg");
  need(isDeepStrictEqual(header.crit, ["a2a"]) && "a2a" in header, 2, "crit");
  need(!["b64", "jku", "jwk", "x5u"].some((name) => name in header), 2, "a key of its own, or b64");
  const { id, key } = await attempt(3, "certificate", () => signer(header, USAGE[typ], bundles, now));
  parts[1] = base64url.encode(body); // (4) and (5)
  await attempt(5, "signature", () => compactVerify(parts.join("."), key, { algorithms, crit: { a2a: true } }));
  const { v, iss, aud, iat, exp, jti, ...rest } = header.a2a ?? {};
  need(v === 1 && iss === id && [aud, jti].every((text) => typeof text === "string"), 6, "v, iss, aud or jti");
  need(/^[\w-]{22,128}$/.test(jti) && [iat, exp].every(Number.isSafeInteger), 6, "jti, iat or exp");
  need(Object.keys(rest).every((name) => MEMBERS[typ].includes(name)), 6, "unknown member");
  need(aud === audience && header.cty === (cty ?? undefined) && isDeepStrictEqual(rest, bound), 7, "received another");
  need(iat < exp && exp - iat <= 300 && iat <= now + 10 && now < exp, 8, "time");
  need((from ?? id) === id && (typ !== "a2a-req+jws" || !seen.has(`${iss} ${aud} ${jti}`)), 9, "another, or again");
  seen.add(`${iss} ${aud} ${jti}`); // until `exp`, for every process that receives
  return id;
}
async function signer({ x5c, "x5t#S256": thumbprint }, usage, bundles, now) {
  const path = x5c.map((entry) => new x509.X509Certificate(Buffer.from(entry, "base64")));
  const date = new Date(now * 1000), [leaf] = path, get = (c, name) => c.getExtension(x509[`${name}Extension`]);
  const uris = get(leaf, "SubjectAlternativeName").names.items.filter(({ type }) => type === "url");
  const [id, domain] = SPIFFE_ID.exec(uris.length === 1 ? uris[0].value : ""); // throws where it is not exactly one
  const keys = bundles.trust_domains[domain].keys.filter(({ use }) => use === "x509-svid"); // of its own domain alone
  path.push(keys.map(({ x5c: [r] }) => new x509.X509Certificate(r)).find((r) => r.subject === path.at(-1).issuer));
  for (const [i, c] of path.entries()) {
    const { ca = false, pathLength = 9 } = get(c, "BasicConstraints") ?? {}, may = get(c, "KeyUsages").usages;
    need(i ? ca && i <= pathLength + 1 && may & keyCertSign : !ca && (may & USES) === digitalSignature, 3, "may not");
    if (i === path.length - 1) break;
    need(c.issuer === path[i + 1].subject && (await c.verify({ publicKey: path[i + 1], date })), 3, "issuer or time");
    need(c.extensions.every(({ critical, type }) => !critical || UNDERSTOOD.includes(type)), 3, "critical extension");
    need(Buffer.from(c.rawData).toString("base64") === x5c[i], 3, "another spelling of base64");
  }
  need(get(leaf, "ExtendedKeyUsage").usages.includes(usage) && path.length <= 9, 3, "another use, or too long");
  need(createHash("sha256").update(new Uint8Array(leaf.rawData)).digest("base64url") === thumbprint, 3, "thumbprint");
  return { id, key: await leaf.publicKey.export() };
}
