// OpenAI's Agents SDK as a caller: `node agents_at_work.mjs SDK URL SCENARIO`, where SDK is the folder that
// scripts/agents-sdk makes. Prints what it saw as JSON: the events of its session, and its history at the end.
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [sdk, url, scenario] = process.argv.slice(2);
const require = createRequire(resolve(sdk, "package.json"));
const { RealtimeAgent, RealtimeSession, OpenAIRealtimeWebSocket, tool } = require("@openai/agents/realtime");
const { z } = require("zod");

const seen = { events: [], errors: [], tools: [], audio_bytes: 0, interrupted: 0, history: [] };
const clock = tool({
  name: "clock",
  description: "Tells the time.",
  parameters: z.object({ zone: z.string() }),
  execute: async ({ zone }) => {
    seen.tools.push(zone);
    return "twelve o'clock";
  },
});
const agent = new RealtimeAgent({ name: "Clara", instructions: "You are Clara. Be brief.", tools: [clock] });
const transport = new OpenAIRealtimeWebSocket({ url });
const session = new RealtimeSession(agent, { transport, tracingDisabled: true, model: "gpt-realtime" });

session.on("error", ({ error }) => seen.errors.push(error?.error?.error ?? String(error)));
session.on("audio", ({ data }) => (seen.audio_bytes += data.byteLength));
session.on("audio_interrupted", () => (seen.interrupted += 1));
transport.on("*", (event) => seen.events.push(event.type));

const once = (type) => new Promise((done) => transport.on("*", (event) => event.type === type && done(event)));
const speech = (seconds, loud) => {
  const pcm = new Int16Array(seconds * 24000);
  for (let i = 0; i < pcm.length; i++) pcm[i] = loud ? 6000 * Math.sin((2 * Math.PI * 200 * i) / 24000) : 0;
  return pcm.buffer;
};

const scenarios = {
  async speak() {
    const done = once("response.done");
    for (const [seconds, loud] of [[0.5, false], [1.2, true], [1.0, false]]) session.sendAudio(speech(seconds, loud));
    await done;
    // The SDK asks for the item again to learn what the user said.
    while (!JSON.stringify(session.history).includes("what time")) await once("conversation.item.retrieved");
  },
  async tools() {
    session.sendMessage("What time is it?");
    await once("response.done");
    await once("response.done");
  },
  async interrupt() {
    session.sendMessage("Count.");
    await once("response.output_audio_transcript.delta");
    await once("response.output_audio_transcript.delta");
    const cut = once("conversation.item.truncated");
    session.interrupt();
    await Promise.all([cut, once("response.done")]);
  },
  async handoff() {
    await session.updateAgent(new RealtimeAgent({ name: "Max", instructions: "You are Max." }));
    session.sendMessage("Who are you?");
    await once("response.done");
  },
};

const timer = setTimeout(() => {
  console.log(JSON.stringify(seen));
  process.exit(3);
}, 20000);
const updated = once("session.updated");
await session.connect({ apiKey: "local" });
await updated;
await scenarios[scenario]();
await new Promise((soon) => setTimeout(soon, 50));
seen.history = session.history;
session.close();
clearTimeout(timer);
console.log(JSON.stringify(seen));
process.exit(0);
