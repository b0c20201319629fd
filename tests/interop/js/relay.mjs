// An A2A agent of the JavaScript SDK between two others: it reads what it receives, and sends it on with its client.
// node relay.mjs CERTIFICATE KEY URL-OF-THE-NEXT-AGENT; prints the port that it listens on.
import fs from "node:fs";
import https from "node:https";
import { AgentCard } from "@a2a-js/sdk";
import { ClientFactory } from "@a2a-js/sdk/client";
import { JsonRpcTransportHandler, ServerCallContext } from "@a2a-js/sdk/server";

const [certificate, key, url] = process.argv.slice(2);
const card = AgentCard.fromJSON({
  name: "next",
  version: "1.0",
  capabilities: { streaming: true },
  supportedInterfaces: [{ url, protocolBinding: "JSONRPC", protocolVersion: "1.0" }],
});
const next = await new ClientFactory().createFromAgentCard(card);
const rpc = new JsonRpcTransportHandler({
  getAgentCard: async () => card,
  sendMessage: (request) => next.sendMessage(request),
  sendMessageStream: (request) => next.sendMessageStream(request),
});

const identity = { cert: fs.readFileSync(certificate), key: fs.readFileSync(key) };
const server = https.createServer(identity, async (request, response) => {
  let body = "";
  for await (const chunk of request.setEncoding("utf8")) body += chunk;
  const answer = await rpc.handle(body, new ServerCallContext({ requestedVersion: "1.0" }));
  if (answer[Symbol.asyncIterator]) {
    response.setHeader("content-type", "text/event-stream");
    for await (const event of answer) response.write(`data: ${JSON.stringify(event)}\n\n`);
    response.end();
  } else {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(answer));
  }
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
