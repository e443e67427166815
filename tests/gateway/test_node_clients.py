"""npm's openai and the Vercel AI SDK as they are. They are looked for in the folder that VEIL_NODE_CLIENTS names:

npm install --prefix FOLDER openai ai @ai-sdk/openai @ai-sdk/openai-compatible @ai-sdk/anthropic zod
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.argv[2], out = {};
const Pet = z.object({ kind: z.enum(["cat", "dog"]), fed: z.boolean() });
const messages = [{ role: "user", content: "a pet" }];

const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const parsed = await client.chat.completions.parse({
  model: "bytes", messages, max_tokens: 200, response_format: zodResponseFormat(Pet, "pet") });
out.openai_parse = parsed.choices[0].message.parsed;
const called = await client.chat.completions.create({
  model: "bytes", messages, max_tokens: 200, tool_choice: "required", tools: [{ type: "function", function: {
    name: "feed", parameters: z.toJSONSchema(Pet) } }] });
out.openai_tool = JSON.parse(called.choices[0].message.tool_calls[0].function.arguments);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ model: "bytes", messages, max_tokens: 8, stream: true }))
  streamed += chunk.choices[0]?.delta?.content ?? "";
out.openai_stream = streamed.length > 0;
out.openai_responses = (await client.responses.create({ model: "bytes", input: "hi", max_output_tokens: 8 })).status;

const providers = {
  compatible: createOpenAICompatible({ name: "veil", baseURL, supportsStructuredOutputs: true })("bytes"),
  chat: createOpenAI({ baseURL, apiKey: "unused" }).chat("bytes"),
  responses: createOpenAI({ baseURL, apiKey: "unused" }).responses("bytes"),
  anthropic: createAnthropic({ baseURL, apiKey: "unused" })("bytes"),
};
for (const [name, model] of Object.entries(providers)) {
  const options = { model, prompt: "a pet", maxOutputTokens: 300, maxRetries: 0 };
  out[`${name}_object`] = (await generateObject({ ...options, schema: Pet })).object;
  const feed = tool({ description: "feed", inputSchema: Pet });
  const text = await generateText({ ...options, tools: { feed }, toolChoice: { type: "tool", toolName: "feed" } });
  out[`${name}_tool`] = text.toolCalls[0].input;
  let words = "";
  for await (const part of streamText({ ...options, maxOutputTokens: 8 }).textStream) words += part;
  out[`${name}_stream`] = words.length > 0;
}
console.log(JSON.stringify(out));
"""


@pytest.mark.slow
def test_node_clients(bytes_running: Any, tmp_path: Path) -> None:
    folder, node = os.environ.get("VEIL_NODE_CLIENTS"), shutil.which("node")
    if not folder or node is None:
        pytest.skip("no node, or VEIL_NODE_CLIENTS names no folder with its clients")
    (tmp_path / "node_modules").symlink_to(Path(folder).resolve() / "node_modules")
    (tmp_path / "program.mjs").write_text(PROGRAM)
    url = f"{bytes_running.url}/v1"
    run = subprocess.run([node, "program.mjs", url], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    for name, value in found.items():
        if name.endswith(("_parse", "_object", "_tool")):
            assert value["kind"] in ("cat", "dog") and isinstance(value["fed"], bool), name
        elif name.endswith("_stream"):
            assert value is True, name
    assert found["openai_responses"] == "incomplete" and len(found) == 16
