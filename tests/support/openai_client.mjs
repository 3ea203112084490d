// What OpenAI's package for Node does with a server: one scenario a run, whose result goes to stdout as JSON.
//
//   node openai_client.mjs FOLDER_OF_NODE_MODULES URL KEY SCENARIO

import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, baseURL, apiKey, scenario] = process.argv.slice(2);
const { OpenAI } = createRequire(join(folder, "package.json"))("openai");
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

const model = "default";
const hello = [{ role: "user", content: "hi" }];
const lima = [{ role: "user", content: "How warm is it in Lima?" }];
const song = { model, messages: [{ role: "user", content: "sing" }], stream: true, max_tokens: 100_000 };
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "temperature", description: "Degrees.", parameters } }];

const chat = (fields = {}, options = {}) =>
  client.chat.completions.create({ model, messages: hello, ...fields }, options);

const whatFails = async (promise) => {
  try {
    await promise;
  } catch (error) {
    const { status, code, param, type } = error;
    return { kind: error.constructor.name, status, code, param, type };
  }
  throw new Error("nothing failed");
};

const firstContent = async (stream) => {
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) return chunk.choices[0].delta.content;
  }
};

const scenarios = {
  chat: () => chat(),

  usual: () =>
    chat({
      tools: [],
      tool_choice: "auto",
      parallel_tool_calls: true,
      response_format: { type: "text" },
      reasoning_effort: "medium",
      max_completion_tokens: 50,
      stop: null,
      logit_bias: null,
      n: 1,
      seed: 7,
      user: "somebody",
    }),

  async stream() {
    const chunks = [];
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
      chunks.push(chunk);
    }
    return chunks;
  },

  async helper() {
    const seen = [];
    const stream = client.chat.completions.stream({ model, messages: hello });
    stream.on("content", (delta) => seen.push(delta));
    return { content: await stream.finalContent(), seen, end: await stream.finalChatCompletion() };
  },

  async streamedCall() {
    const stream = client.chat.completions.stream({ model, messages: lima, tools });
    return (await stream.finalChatCompletion()).choices[0];
  },

  async tools() {
    const { message, finish_reason } = (await chat({ messages: lima, tools })).choices[0];
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "19" };
    const answer = await chat({ messages: [...lima, message, result], tools });
    return { message, finish_reason, answer: answer.choices[0].message.content };
  },

  async runTools() {
    const asked = [];
    const temperature = ({ city }) => {
      asked.push(city);
      return "19";
    };
    const own = { ...tools[0].function, function: temperature, parse: JSON.parse };
    const results = {};
    for (const stream of [false, true]) {
      const runner = client.chat.completions.runTools({
        model,
        messages: lima,
        tools: [{ type: "function", function: own }],
        stream,
      });
      results[stream ? "streamed" : "whole"] = await runner.finalContent();
    }
    return { asked, ...results };
  },

  stop: async () => (await chat({ stop: [", friend"] })).choices[0],

  logprobs: async () => (await chat({ logprobs: true, top_logprobs: 2, max_tokens: 4 })).choices[0].logprobs.content,

  async completions() {
    const stream = await client.completions.create({ model, prompt: "Once", stream: true });
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0].text;
    return text;
  },

  async models() {
    const names = [];
    for await (const one of client.models.list()) names.push(one.id);
    return [...names, (await client.models.retrieve(model)).id];
  },

  errors: async () => ({
    mistake: await whatFails(chat({ n: 2 })),
    streamed: await whatFails(chat({ n: 2, stream: true })),
    model: await whatFails(chat({ model: "gpt-4o" })),
    retrieved: await whatFails(client.models.retrieve("gpt-4o")),
    key: await whatFails(new OpenAI({ baseURL, apiKey: "wrong-0123456789abcdef", maxRetries: 0 }).models.list()),
  }),

  async full() {
    const controller = new AbortController();
    const six = Array.from({ length: 6 }, () => client.chat.completions.create(song, { signal: controller.signal }));
    const streams = await Promise.all(six);
    const failure = await whatFails(chat());
    streams.forEach((stream) => stream.controller.abort());
    controller.abort();
    return failure;
  },

  async abort() {
    const controller = new AbortController();
    const stream = await client.chat.completions.create(song, { signal: controller.signal });
    let first = "";
    for await (const chunk of stream) {
      first ||= chunk.choices[0].delta.content;
      if (first) controller.abort();
    }
    return first;
  },

  breakOut: async () => firstContent(await client.chat.completions.create(song)),
};

console.log(JSON.stringify(await scenarios[scenario]()));
