// The gateway's API: requests, errors in words, and a streamed answer.

import { TAB } from "/page/ids.js";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function apiKey(value) {
  if (value === undefined) return sessionStorage.getItem("veil.key") ?? "";
  sessionStorage.setItem("veil.key", value);
  return value;
}

async function call(path, { body, signal } = {}) {
  const headers = { "X-Veil-Tab": TAB };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = { method: body === undefined ? "GET" : "POST", headers, signal };
  if (body !== undefined) options.body = JSON.stringify(body);
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The gateway does not answer. Is “veil gateway” still running?");
  }
  if (!reply.ok) {
    const error = await reply.json().then((json) => json.error, () => null);
    throw new ApiError(reply.status, error?.message ?? `The gateway answered with status ${reply.status}.`);
  }
  return reply;
}

export const models = async () => (await (await call("/v1/models")).json()).data;
export const status = async (model) => (await call(`/veil/status${model ? `?model=${encodeURIComponent(model)}` : ""}`)).json();
export const expect = (model, characters, newTokens) =>
  call("/veil/expect", { body: { model, characters: Math.min(characters, 1 << 20), new_tokens: newTokens } }).catch(() => {});
export const prefill = async (body, signal) => (await call("/veil/prefill", { body, signal })).json();
export const countTokens = async (body, signal) => (await call("/tokenize", { body, signal })).json();

// Each chunk of a streamed chat; throws ApiError, or AbortError when the signal stops it.
export async function* chat(body, signal) {
  const options = { ...body, stream: true, stream_options: { include_usage: true }, veil: { trace: true } };
  const reply = await call("/v1/chat/completions", { body: options, signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError(0, "The answer broke off.");
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(500, chunk.error.message);
        yield chunk;
      }
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError(0, "The gateway went away.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
