// What the JavaScript SDK's client, which signs nothing, says of an agent that requires signatures.
// node unsigned.mjs CERTIFICATE KEY ROOTS TOKEN CARD; prints for each binding the class of the error and its message.
import fs from "node:fs";
import https from "node:https";
import { AgentCard } from "@a2a-js/sdk";
import { ClientFactory, JsonRpcTransportFactory, RestTransportFactory } from "@a2a-js/sdk/client";

const [cert, key, ca, token, card] = process.argv.slice(2);
const identity = { cert: fs.readFileSync(cert), key: fs.readFileSync(key), ca: fs.readFileSync(ca) };

// Node's own fetch has no client certificates.
const fetchImpl = (url, { method, headers, body }) =>
  new Promise((resolve, reject) => {
    const all = { ...Object.fromEntries(new Headers(headers)), authorization: `Bearer ${token}` };
    const request = https.request(url, { ...identity, method, headers: all }, async (response) => {
      const chunks = await response.toArray();
      resolve(new Response(Buffer.concat(chunks), { status: response.statusCode, headers: response.headers }));
    });
    request.on("error", reject).end(body);
  });

const { supportedInterfaces, ...rest } = AgentCard.fromJSON(JSON.parse(card));
const message = { messageId: "1", role: 1, parts: [{ content: { $case: "text", value: "hello" } }], extensions: [] };
for (const transport of [new JsonRpcTransportFactory({ fetchImpl }), new RestTransportFactory({ fetchImpl })]) {
  const one = supportedInterfaces.filter(({ protocolBinding }) => protocolBinding === transport.protocolName);
  const factory = new ClientFactory({ transports: [transport] });
  const client = await factory.createFromAgentCard({ ...rest, supportedInterfaces: one });
  const refused = (error) => `${error.constructor.name}: ${error.message}`;
  console.log(await client.sendMessage({ message }).then(() => "an answer", refused));
}
