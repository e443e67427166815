// Asking: messages go up, answers come down word by word and are kept as they come. Each chat has at most one that is
// being written; it goes on while another chat is looked at.

import * as api from "/page/api.js";
import * as chats from "/page/chats.js";
import { newId } from "/page/ids.js";
import * as saw from "/page/saw.js";
import { pathTo } from "/page/tree.js";
import { requestFor, wholeCalls } from "/page/wording.js";

const running = new Map(); // by chat's id: { chat, stop, message }
const KEEP_EVERY_MS = 500;

export const BROKEN_AFTER_MS = 6000; // what is being written is kept every second; silence means that its tab is gone

let view = { begun() {}, progress() {}, over() {}, unsent() {} };

// The view is told: `begun(chat)`, `progress(chat, message)`, `over(chat, message)`, and `unsent(chat, message, error)` for
// a question that never reached a model: it is not in the chat then.
export const onAnswers = (told) => (view = told);

export const isRunning = (chat) => running.has(chat.id);
// A chat that is being written as it is now.
export const openOf = (id) => running.get(id)?.chat;
export const anyRunning = () => running.size > 0;
export const stop = (chat) => running.get(chat.id)?.stop.abort();
export const isWritten = (message) => [...running.values()].some((one) => one.message.id === message.id);

const newMessage = (chat, parent, role, fields) => ({ id: newId(), chat: chat.id, parent: parent ?? null, role, content: "", created: Date.now(), state: "done", ...fields });

// Send a question after `parent` and have it answered.
export async function ask(chat, parent, content, attachments) {
  const question = newMessage(chat, parent, "user", { content, attachments });
  const before = chat.leaf;
  chat.messages.set(question.id, question);
  const title = chat.named || chat.messages.size > 1 ? chat.title : titleOf(question);
  await chats.change(chat, { leaf: question.id, changed: Date.now(), title });
  await chats.keep(chat, question);
  await answer(chat, question, { question, before });
}

// Hand a tool's result to the model; it answers once every call of the turn has one.
export async function giveResult(chat, message, call, content) {
  const results = pathTo(chat.messages, chat.leaf).filter((one) => one.role === "tool" && message.calls.some(({ id }) => id === one.callId));
  const result = newMessage(chat, chat.leaf, "tool", { content, callId: call.id });
  await chats.keep(chat, result);
  await chats.change(chat, { leaf: result.id, changed: Date.now() });
  if (results.length + 1 < wholeCalls(message).length) view.over(chat, result);
  else await answer(chat, result);
}

// Answer a question or a tool's result; once more, if it has an answer already: that is a new branch.
export async function answer(chat, question, fresh) {
  if (isRunning(chat)) return;
  const before = chat.leaf;
  const message = newMessage(chat, question.id, "assistant", { state: "writing", saw: saw.begin(), model: chat.settings.model });
  const request = () => requestFor(pathTo(chat.messages, question.id), chat.settings);
  await write(chat, message, request, async (error) => {
    await chats.drop(chat, message);
    if (fresh) await chats.drop(chat, fresh.question);
    if (!chat.messages.size) await chats.remove(chat.id);
    await chats.change(chat, { leaf: fresh ? fresh.before : before });
    view.unsent(chat, fresh?.question, error);
  });
}

// Go on with an answer that broke off, was stopped or was too long.
export async function goOn(chat, message) {
  if (isRunning(chat)) return;
  const path = pathTo(chat.messages, message.id);
  const request = () => requestFor(path, chat.settings, true);
  const state = { state: message.state, error: message.error };
  await write(chat, message, request, async (error) => {
    Object.assign(message, state);
    await chats.keep(chat, message);
    view.unsent(chat, undefined, error);
  });
}

// Have a message written. `undo` is called with what went wrong if not one chunk came.
async function write(chat, message, request, undo) {
  const run = { chat, stop: new AbortController(), message };
  running.set(chat.id, run);
  Object.assign(message, { state: "writing", error: undefined, touched: Date.now() });
  chat.messages.set(message.id, message);
  await chats.change(chat, { leaf: message.id, changed: Date.now() });
  await chats.keep(chat, message);
  view.begun(chat, message);
  const timer = setInterval(() => keep(chat, message), KEEP_EVERY_MS);
  let begun = false;
  let failure = null;
  try {
    for await (const chunk of api.chat(request(), run.stop.signal)) {
      const silent = !message.content;
      take(message, chunk);
      if (!begun || (silent && message.content)) keep(chat, message);
      begun = true;
      view.progress(chat, message);
    }
    if (message.state === "writing") message.state = "done";
  } catch (error) {
    failure = error;
    message.state = error.name === "AbortError" ? "stopped" : "broken";
    if (message.state === "broken") message.error = error.message;
  }
  clearInterval(timer);
  running.delete(chat.id);
  if (failure && !begun && message.state === "broken") return void (await undo(failure));
  await keep(chat, message);
  view.over(chat, message);
}

window.addEventListener("pagehide", () => running.forEach(({ chat, message }) => keep(chat, message)));

function keep(chat, message) {
  message.touched = Date.now();
  return chats.keep(chat, message);
}

function take(message, chunk) {
  const [choice] = chunk.choices;
  message.content += choice?.delta.content ?? "";
  for (const piece of choice?.delta.tool_calls ?? []) {
    message.calls ??= [];
    message.calls[piece.index] ??= { id: piece.id, name: piece.function.name, text: "" };
    message.calls[piece.index].text += piece.function.arguments;
  }
  if (choice?.finish_reason === "length") message.state = "length";
  if (chunk.veil) saw.note(message.saw, chunk.veil);
  if (chunk.usage) saw.noteUsage(message.saw, chunk.usage);
}

function titleOf({ content, attachments = [] }) {
  const line = content.trim().split("\n")[0] || attachments[0]?.name || "New chat";
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line;
}
