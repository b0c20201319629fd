// The whole life of two tokens, by npm oauth4webapi, over mutual TLS; prints what it got as one line of JSON.
// node oauth4webapi.mjs FACTS: JSON with issuer, server (SPIFFE ID), roots, and for each agent its id, chain and key.
import fs from "node:fs";
import https from "node:https";
import { createLocalJWKSet, jwtVerify } from "jose";
import * as oauth from "oauth4webapi";

const EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token";
const facts = JSON.parse(process.argv[2]);

// `fetch` with a client certificate, for the one server that is meant.
function over(agent) {
  const options = {
    ca: fs.readFileSync(facts.roots),
    cert: fs.readFileSync(agent.chain),
    key: fs.readFileSync(agent.key),
    minVersion: "TLSv1.3",
    checkServerIdentity: (_, cert) =>
      cert.subjectaltname.split(", ").includes(`URI:${facts.server}`) ? undefined : new Error(cert.subjectaltname),
  };
  return (url, { method, headers, body }) =>
    new Promise((resolve, reject) => {
      const request = https.request(url, { ...options, method, headers }, (answer) => {
        const chunks = [];
        answer.on("data", (chunk) => chunks.push(chunk));
        answer.on("end", () => {
          const headers = Object.entries(answer.headers).map(([name, value]) => [name, String(value)]);
          resolve(new Response(Buffer.concat(chunks), { status: answer.statusCode, headers }));
        });
      });
      request.on("error", reject);
      request.end(body === undefined || body === null ? undefined : body.toString());
    });
}

const [planner, billing] = facts.agents.map((agent) => ({
  client: { client_id: agent.id },
  options: { [oauth.customFetch]: over(agent) },
}));
const issuer = new URL(facts.issuer);
const discovered = await oauth.discoveryRequest(issuer, { ...planner.options, algorithm: "oauth2" });
const as = await oauth.processDiscoveryResponse(issuer, discovered);
const tls = oauth.TlsClientAuth();

async function clientCredentials(who, parameters) {
  const answer = await oauth.clientCredentialsGrantRequest(as, who.client, tls, parameters, who.options);
  return oauth.processClientCredentialsResponse(as, who.client, answer);
}

async function exchanged(who, parameters) {
  const asked = { subject_token_type: ACCESS_TOKEN, ...parameters };
  const answer = await oauth.genericTokenEndpointRequest(as, who.client, tls, EXCHANGE, asked, who.options);
  return oauth.processGenericTokenEndpointResponse(as, who.client, answer);
}

// oauth4webapi itself refuses every token that is bound to a certificate.
const published = await (await over(facts.agents[0])(as.jwks_uri, { method: "GET" })).json();
async function validated(token, audience) {
  const expected = { issuer: facts.issuer, audience, typ: "at+jwt" };
  return (await jwtVerify(token, createLocalJWKSet(published), expected)).payload;
}

async function introspected(who, token, requestJwtResponse) {
  const options = { ...who.options, requestJwtResponse };
  const answer = await oauth.introspectionRequest(as, who.client, tls, token, options);
  const copy = answer.clone();
  const claims = await oauth.processIntrospectionResponse(as, who.client, answer);
  if (requestJwtResponse) await oauth.validateApplicationLevelSignature(as, answer, who.options);
  return { type: copy.headers.get("content-type"), claims };
}

async function refused(work) {
  try {
    await work();
    return "it was not refused";
  } catch (error) {
    return { name: error.constructor.name, status: error.status, error: error.error };
  }
}

// A token that is bound to a key (DPoP), and a request with it, which oauth4webapi itself accepts as a resource.
async function boundToKey(algorithm, url, parameters) {
  const DPoP = oauth.DPoP(planner.client, await oauth.generateKeyPair(algorithm));
  const options = { ...planner.options, DPoP };
  const answer = await oauth.clientCredentialsGrantRequest(as, planner.client, tls, parameters, options);
  const got = await oauth.processClientCredentialsResponse(as, planner.client, answer);
  let sent;
  await oauth.protectedResourceRequest(got.access_token, "POST", new URL(url), undefined, undefined, {
    DPoP,
    [oauth.customFetch]: async (_, { headers }) => ((sent = headers), new Response()),
  });
  const headers = Object.fromEntries(new Headers(sent));
  const { [oauth.customFetch]: customFetch } = planner.options;
  const claims = await oauth.validateJwtAccessToken(
    as, new Request(url, { method: "POST", headers }), parameters.resource, { [oauth.customFetch]: customFetch },
  );
  return { url, token_type: got.token_type, headers, claims };
}

const asked = { resource: facts.agents[1].id, scope: facts.scope };
const first = await clientCredentials(planner, asked);
const second = await exchanged(billing, {
  subject_token: first.access_token, resource: facts.ledger, scope: facts.narrower,
});
const living = await introspected(billing, second.access_token, false);
const signed = await introspected(billing, second.access_token, true);
const foreign = await introspected(planner, second.access_token, false);
await oauth.processRevocationResponse(
  await oauth.revocationRequest(as, planner.client, tls, first.access_token, planner.options),
);
console.log(
  JSON.stringify({
    first: { ...first, claims: await validated(first.access_token, facts.agents[1].id) },
    second: { ...second, claims: await validated(second.access_token, facts.ledger) },
    living,
    signed,
    foreign,
    bound: await Promise.all(
      ["ES256", "Ed25519"].map((algorithm) => boundToKey(algorithm, "https://billing.example/a2a?tenant=1", asked)),
    ),
    published,
    revoked: await introspected(billing, second.access_token, false),
    refusals: {
      scope: await refused(() => clientCredentials(planner, { ...asked, scope: "agent:admin" })),
      target: await refused(() => clientCredentials(planner, { ...asked, resource: "https://elsewhere.example" })),
      client: await refused(() => clientCredentials({ ...planner, client: billing.client }, asked)),
      "two resources": await refused(() =>
        clientCredentials(planner, [...Object.entries(asked), ["resource", facts.ledger]]),
      ),
      "revoked subject": await refused(() =>
        exchanged(billing, { subject_token: first.access_token, resource: facts.ledger, scope: facts.narrower }),
      ),
      "another audience": await refused(() => validated(first.access_token, facts.ledger)),
    },
  }),
);
