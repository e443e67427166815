// A branch of a chat as the API's messages.

import { requestOf } from "/page/settings.js";

// An attached text as a part of a message, as `veil chat` has it.
export function fileText({ name, text }) {
  let fence = "```";
  while (text.includes(fence)) fence += "`";
  return `${name}:\n${fence}\n${text.trimEnd()}\n${fence}`;
}

function contentOf({ content, attachments = [] }) {
  const texts = attachments.filter((one) => one.kind === "text").map(fileText);
  const images = attachments.filter((one) => one.kind === "image");
  const text = [...texts, content].filter(Boolean).join("\n\n");
  if (!images.length) return text;
  return [...images.map((one) => ({ type: "image_url", image_url: { url: one.data } })), ...(text ? [{ type: "text", text }] : [])];
}

// The calls of an answer that are complete: one that is still being written, or was stopped, is no JSON yet.
export const wholeCalls = ({ calls = [] }) => calls.filter((call) => call && isJson(call.text || "{}"));

function isJson(text) {
  try {
    return Boolean(JSON.parse(text));
  } catch {
    return false;
  }
}

export function messagesOf(path, settings) {
  const messages = path.filter((one) => one.role !== "assistant" || one.content || wholeCalls(one).length).map(messageOf);
  return settings.system?.trim() ? [{ role: "system", content: settings.system }, ...messages] : messages;
}

function messageOf(message) {
  if (message.role === "user") return { role: "user", content: contentOf(message) };
  if (message.role === "tool") return { role: "tool", content: message.content, tool_call_id: message.callId };
  const turn = { role: "assistant", content: message.content };
  const calls = wholeCalls(message);
  if (calls.length) {
    turn.tool_calls = calls.map(({ id, name, text }) => ({ id, type: "function", function: { name, arguments: text || "{}" } }));
  }
  return turn;
}

// A request for the next turn after a path; with `going` for the rest of its last one.
export function requestFor(path, settings, going = false) {
  const request = { ...requestOf(settings), messages: messagesOf(path, settings) };
  if (going) Object.assign(request, { continue_final_message: true, add_generation_prompt: false });
  return request;
}
