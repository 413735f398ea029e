// OpenAI's Node client: node openai_node.mjs http://127.0.0.1:8000/v1 demo
import assert from "node:assert";
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What does a domestic wire cost?" }];

const answer = await client.chat.completions.create({ model, messages, temperature: 0 });
const text = answer.choices[0].message.content;
assert(text);

let streamed = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({
  model, messages, temperature: 0, stream: true, stream_options: { include_usage: true },
})) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.deepEqual(usage, answer.usage);

const schema = {
  type: "object",
  properties: { amount: { type: "integer" } },
  required: ["amount"],
  additionalProperties: false,
};
const formed = await client.chat.completions.create({
  model, messages, seed: 1,
  response_format: { type: "json_schema", json_schema: { name: "fee", schema, strict: true } },
});
assert(Number.isInteger(JSON.parse(formed.choices[0].message.content).amount));

await assert.rejects(
  client.chat.completions.create({ model: "gpt-5", messages }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
);
const listed = [];
for await (const one of client.models.list()) listed.push(one.id);
assert(listed.includes(model));
const about = new URL("./package.json", import.meta.resolve("openai"));
const { version } = JSON.parse(readFileSync(about));
console.log(JSON.stringify({ version, answer: text }));
