// A chat made with React's useStream: a conversation with a tool, an approval, an edit with its branches, and a second
// visit. It prints what a person would see.
import React from "react";
import { create } from "react-test-renderer";
import { useStream } from "@langchain/langgraph-sdk/react";

const apiUrl = process.argv[2];
const defaultHeaders = { "x-user": "alice" };
const seen = { errors: [] };

let chat;
function Chat({ open }) {
  const [threadId, setThreadId] = React.useState(open);
  chat = useStream({
    apiUrl,
    assistantId: "agent",
    threadId,
    onThreadId: setThreadId,
    defaultHeaders,
    fetchStateHistory: { limit: 100 },
    onError: (error) => seen.errors.push(String(error)),
  });
  chat.threadId = threadId;
  return null;
}

async function until(isSo, what) {
  for (let tries = 0; tries < 1000; tries++) {
    if (chat && !chat.isLoading && isSo()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`never: ${what}; ${JSON.stringify({ ...seen, shown: shown() })}`);
}

const shown = () => chat.messages.map((message) => message.content).filter(Boolean);
const says = (text) => shown().at(-1)?.includes(text);
const human = (content) => ({ messages: [{ type: "human", content }] });

let page = create(React.createElement(Chat, { open: null }));
await until(() => true, "shown");
chat.submit(human("look up tea"));
await until(() => says("tea is nice"), "answered");
seen.answered = shown();

chat.submit(human("ask cake"));
await until(() => chat.interrupt, "asked");
seen.asked = chat.interrupt.value;
chat.submit(undefined, { command: { resume: "yes please" } });
await until(() => says("cake: yes please"), "approved");

await until(() => chat.getMessagesMetadata(chat.messages[0])?.firstSeenState, "history");
const first = chat.getMessagesMetadata(chat.messages[0]).firstSeenState;
chat.submit(human("look up milk"), { checkpoint: first.parent_checkpoint });
await until(() => says("milk is nice"), "edited");
await until(() => chat.getMessagesMetadata(chat.messages[0])?.branchOptions, "branches");
seen.edited = shown();
seen.branches = chat.getMessagesMetadata(chat.messages[0]).branchOptions.length;

const id = chat.threadId;
page.unmount();
chat = undefined;
page = create(React.createElement(Chat, { open: id }));
await until(() => chat.messages.length > 0, "opened again");
seen.again = shown();
console.log(JSON.stringify(seen));
page.unmount();
process.exit(0);
