// Vercel's AI SDK against the scripted server at a base address; each answer is known.
import assert from "node:assert/strict";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { z } from "zod";

const to = { baseURL: `${process.argv[2]}/v1`, apiKey: "none" };
const openai = createOpenAI(to);
const compatible = createOpenAICompatible({ name: "own", includeUsage: true, supportsStructuredOutputs: true, ...to });
const NAME = "Qwen3-scripted", HELLO = "Hello! I am Qwen3. What would you like to know?";
const CALL = 'Say exactly: <tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>';
const OBJECT = 'Say exactly: {"city": "Oslo", "n": 3}';
const city = z.object({ city: z.string() });
const asked = { maxOutputTokens: 300 };
const calls = (found) => found.map((each) => [each.toolName, each.input]);
const wanted = [["weather", { city: "Oslo" }]];

for (const [name, model] of [["responses", openai(NAME)], ["chat", openai.chat(NAME)], ["compatible", compatible(NAME)]]) {
  const tools = { weather: tool({ description: "d", inputSchema: city }) };
  const whole = await generateText({ model, prompt: "Good morning", ...asked });
  assert.equal(whole.text, HELLO);
  assert.ok(whole.usage.outputTokenDetails.reasoningTokens > 0);
  const stream = streamText({ model, prompt: "Good morning", ...asked });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, HELLO);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
  for (const toolChoice of ["auto", "required"])
    assert.deepEqual(calls((await generateText({ model, prompt: CALL, tools, toolChoice, ...asked })).toolCalls), wanted);
  assert.deepEqual(calls(await streamText({ model, prompt: CALL, tools, ...asked }).toolCalls), wanted);
  const schema = z.object({ city: z.string(), n: z.number() });
  assert.deepEqual((await generateObject({ model, prompt: OBJECT, schema, ...asked })).object, { city: "Oslo", n: 3 });
  const own = { weather: tool({ description: "d", inputSchema: city, execute: async () => "sunny" }) };
  const loop = await generateText({ model, prompt: CALL, tools: own, stopWhen: stepCountIs(2), ...asked });
  assert.deepEqual(loop.steps.map((step) => step.finishReason), ["tool-calls", "stop"]);
  console.log(`AI SDK ${name}: as it should be`);
}
const legacy = await generateText({ model: openai.completion(NAME), prompt: "Good morning", ...asked });
assert.ok(legacy.text.endsWith(HELLO));
console.log("AI SDK completion: as it should be");
