// A conversation over LangGraph's API by its JavaScript client: node conversation.mjs URL. Prints JSON.
import { Client } from "@langchain/langgraph-sdk";

const clientOf = (user) => new Client({ apiUrl: process.argv[2], defaultHeaders: { "x-user": user } });
const client = clientOf("alice");
const thread = await client.threads.create();
const id = thread.thread_id;
const say = (text) => ({ messages: [{ type: "human", content: text }] });
const texts = (values) => values.messages.map((message) => message.content);
const found = { id, events: [], tokens: "" };

let lastId;
let runId;
const streamMode = ["values", "messages-tuple"];
const onRunCreated = (run) => (runId = run.run_id);
const options = { input: say("hi"), streamMode, streamResumable: true, onDisconnect: "continue", onRunCreated };
for await (const part of client.runs.stream(id, "gated", options)) {
  found.events.push(part.event);
  if (part.event === "messages") found.tokens += part.data[0].content;
  if (part.event === "metadata") lastId = part.id;
}
found.again = [];
for await (const part of client.runs.joinStream(id, runId, { lastEventId: lastId })) found.again.push(part.event);

const asked = await client.runs.wait(id, "gated", { input: say("ask") });
found.asked = asked.__interrupt__.map((each) => each.value);
found.status = (await client.threads.get(id)).status;
found.answered = texts(await client.runs.wait(id, "gated", { command: { resume: "green" } }));
found.history = (await client.threads.getHistory(id)).length;

const held = await client.runs.create(id, "gated", { input: say("hold never"), streamMode: "custom" });
for await (const part of client.runs.joinStream(id, held.run_id, { lastEventId: "-1" })) {
  if (part.event === "custom") break;
}
await client.runs.cancel(id, held.run_id, true);
found.runs = (await client.runs.list(id)).map((run) => run.status);

const mallory = clientOf("mallory");
found.refused = [];
for (const attempt of [
  () => mallory.threads.get(id),
  () => mallory.runs.wait(id, "gated", { input: say("hi") }),
  () => mallory.runs.list(id),
  () => mallory.runs.cancel(id, held.run_id),
  async () => {
    for await (const part of mallory.runs.joinStream(id, runId)) found.leaked = part;
  },
]) {
  try {
    await attempt();
    found.refused.push("allowed");
  } catch (error) {
    found.refused.push(error.status ?? String(error));
  }
}
console.log(JSON.stringify(found));
