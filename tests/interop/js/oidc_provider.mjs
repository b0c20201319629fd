// An authorization server that others wrote: npm oidc-provider, certified for OpenID Connect and FAPI, over mutual TLS.
// node oidc_provider.mjs; the first line of its input is the configuration, each further one a new set of signing keys.
// It prints its port, and a line for each set once that is in use.
import fs from "node:fs";
import https from "node:https";
import readline from "node:readline";
import { createLocalJWKSet, jwtVerify } from "jose";
import Provider, { errors } from "oidc-provider";

console.info = console.error; // its own notes; the output is ours
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const { certificate, key, root, port, keys, clients, resources, scopes } = JSON.parse((await lines.next()).value);

const EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token";

const presented = (ctx) => ctx.socket.getPeerX509Certificate();
const saved = new Map(); // what is issued outlives a change of keys

class Adapter {
  constructor(name) {
    this.name = name;
  }
  async upsert(id, payload) {
    saved.set(`${this.name} ${id}`, payload);
  }
  async find(id) {
    return saved.get(`${this.name} ${id}`);
  }
  async destroy(id) {
    saved.delete(`${this.name} ${id}`);
  }
}

// Token exchange (RFC 8693), which it leaves to who uses it: the subject stays, the client becomes the actor, the scopes
// are no more than the subject token's.
const exchanging = (provider, issuer, keys) => async (ctx) => {
  const { subject_token, resource, scope } = ctx.oidc.params;
  const published = createLocalJWKSet({ keys: keys.map(({ d, p, q, dp, dq, qi, ...members }) => members) });
  const refuse = () => {
    throw new errors.InvalidRequest("subject token");
  };
  const { payload } = await jwtVerify(subject_token, published, { issuer, typ: "at+jwt" }).catch(refuse);
  ctx.state.act = { sub: ctx.oidc.client.clientId, act: payload.act };
  const narrowed = scope.split(" ").filter((one) => payload.scope.split(" ").includes(one));
  const token = new provider.AccessToken({
    client: ctx.oidc.client,
    accountId: payload.sub,
    scope: narrowed.join(" "),
    gty: "exchange",
  });
  token.resourceServer = new provider.ResourceServer(resource, { audience: resource, ...resources[resource] });
  token.setThumbprint("x5t", presented(ctx));
  ctx.body = {
    access_token: await token.save(),
    issued_token_type: ACCESS_TOKEN,
    token_type: "Bearer",
    expires_in: token.expiration,
    scope: token.scope,
  };
};

const made = (issuer, keys) => {
  const provider = new Provider(issuer, {
    adapter: Adapter,
    clients,
    jwks: { keys },
    scopes: [],
    responseTypes: [],
    ttl: { AccessToken: 600, ClientCredentials: 600 },
    extraTokenClaims: (ctx) => ctx.state.act && { act: ctx.state.act },
    clientDefaults: { id_token_signed_response_alg: "ES256" },
    clientAuthMethods: ["tls_client_auth", "self_signed_tls_client_auth", "private_key_jwt", "client_secret_basic"],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: (ctx, client, token) => token.clientId === client.clientId },
      revocation: { enabled: true, allowedPolicy: (ctx, client, token) => token.clientId === client.clientId },
      mTLS: {
        enabled: true,
        certificateBoundAccessTokens: true,
        tlsClientAuth: true,
        selfSignedTlsClientAuth: true,
        getCertificate: presented,
        certificateAuthorized: (ctx) => ctx.socket.authorized,
        certificateSubjectMatches: (ctx, property, expected) =>
          property === "tls_client_auth_san_uri" &&
          presented(ctx).subjectAltName.split(", ").filter((name) => name.startsWith("URI:")).join() ===
            `URI:${expected}`,
      },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) =>
          resources[resource] === undefined
            ? Promise.reject(new Error("no such resource"))
            : { audience: resource, scope: scopes, ...resources[resource] },
      },
    },
  });
  const parameters = ["subject_token", "subject_token_type", "requested_token_type", "resource", "scope"];
  provider.registerGrantType(EXCHANGE, exchanging(provider, issuer, keys), parameters);
  return provider;
};

let answer;
const server = https.createServer(
  {
    cert: fs.readFileSync(certificate),
    key: fs.readFileSync(key),
    ca: fs.readFileSync(root),
    requestCert: true,
    rejectUnauthorized: false, // by the provider, for each way in which clients prove who they are
    minVersion: "TLSv1.3",
  },
  (request, response) => answer(request, response),
);
server.listen(port, "127.0.0.1", async () => {
  const issuer = `https://localhost:${server.address().port}`;
  answer = made(issuer, keys).callback();
  console.log(server.address().port);
  for await (const line of lines) {
    answer = made(issuer, JSON.parse(line)).callback();
    console.log("changed");
  }
  process.exit();
});
