// What the JavaScript SDK's client, which knows nothing of signatures, reads of a stream as it went over the wire.
// node stream.mjs BINDING CARD < STREAM; prints each event as a line of JSON, and last the message of an error if any.
import fs from "node:fs";
import { AgentCard, StreamResponse } from "@a2a-js/sdk";
import { ClientFactory, JsonRpcTransportFactory, RestTransportFactory } from "@a2a-js/sdk/client";

const [binding, card] = process.argv.slice(2);
const wire = fs.readFileSync(0);
const fetchImpl = async () => new Response(wire, { headers: { "content-type": "text/event-stream" } });
const Transport = binding === "JSONRPC" ? JsonRpcTransportFactory : RestTransportFactory;
const factory = new ClientFactory({ transports: [new Transport({ fetchImpl })] });
const client = await factory.createFromAgentCard(AgentCard.fromJSON(JSON.parse(card)));
const message = { messageId: "1", role: 1, parts: [{ content: { $case: "text", value: "hello" } }], extensions: [] };
try {
  for await (const event of client.sendMessageStream({ message })) console.log(JSON.stringify(StreamResponse.toJSON(event)));
} catch (error) {
  console.log(JSON.stringify({ error: error.message }));
}
