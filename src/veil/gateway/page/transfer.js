// Chats as files: Markdown to read, JSON to keep and to bring back.

import { make } from "/page/dom.js";
import { newId } from "/page/ids.js";
import { converted } from "/page/legacy.js";
import { pathTo } from "/page/tree.js";

const FORMAT = "veil chats";

export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export const fileName = (title, ending) => `${title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "chat"}.${ending}`;

// The branch that is on the screen.
export function toMarkdown(chat) {
  const parts = [`# ${chat.title}`];
  if (chat.settings.system?.trim()) parts.push(`*Instructions: ${chat.settings.system.trim()}*`);
  for (const message of pathTo(chat.messages, chat.leaf)) {
    const who = { user: "You", assistant: message.model || "Answer", tool: "Result" }[message.role];
    parts.push(`## ${who}`);
    for (const { name, kind } of message.attachments ?? []) parts.push(`*Attached ${kind === "image" ? "picture" : "file"}: ${name}*`);
    if (message.content) parts.push(message.content);
    for (const call of message.calls ?? []) parts.push(`\`${call.name}\`\n\n\`\`\`json\n${call.text}\n\`\`\``);
  }
  return `${parts.join("\n\n")}\n`;
}

export const toJson = (chats) => `${JSON.stringify({ format: FORMAT, version: 1, chats }, null, 1)}\n`;

// Chats of a file: what `toJson` wrote, or a list of messages as the OpenAI API and `veil chat` have it.
export function fromFile(text, name) {
  const wrong = new Error(`${name} has no chats in it.`);
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw wrong;
  }
  if (found?.format === FORMAT && Array.isArray(found.chats)) return found.chats.map((chat) => whole(chat, wrong));
  const turns = Array.isArray(found) ? found : found?.messages;
  if (!Array.isArray(turns) || !turns.length || !turns.every((turn) => typeof turn?.content === "string")) throw wrong;
  const system = turns.find(({ role }) => role === "system")?.content ?? "";
  const spoken = turns.filter(({ role }) => role === "user" || role === "assistant");
  return [converted({ title: found.title ?? name.replace(/\.json$/, ""), settings: { system }, turns: spoken })];
}

const ROLES = ["user", "assistant", "tool"];

function whole(chat, wrong) {
  const fits = typeof chat?.title === "string" && Array.isArray(chat.messages) && chat.messages.every((one) => typeof one?.id === "string" && ROLES.includes(one.role) && typeof one.content === "string");
  if (!fits) throw wrong;
  const id = typeof chat.id === "string" ? chat.id : newId();
  const now = Date.now();
  const messages = chat.messages.map((one) => ({ ...one, chat: id, parent: one.parent ?? null, created: Number(one.created) || now }));
  return { named: true, leaf: null, ...chat, id, created: Number(chat.created) || now, changed: Number(chat.changed) || now, settings: { ...chat.settings }, messages };
}
