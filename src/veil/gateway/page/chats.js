// The chats of this browser, kept nowhere else. Other tabs are told of every change and tell of theirs.

import * as database from "/page/database.js";
import { newId } from "/page/ids.js";
import { leafOf, newestLeaf } from "/page/tree.js";

const listeners = new Set();
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("veil") : null;
let list = [];
let failed = null;

// `heard({ chat })` is called when a chat changed in another tab; without an id all may have.
export const onElsewhere = (heard) => listeners.add(heard);
export const onFailure = (told) => (failed = told);

tabs?.addEventListener("message", async ({ data }) => {
  await load();
  listeners.forEach((heard) => heard(data));
});

const tell = (id) => tabs?.postMessage({ chat: id });

// What another tab wrote of a chat comes in, what it deleted goes; what this tab has not written yet stays.
export function merge(chat, fresh, isMine) {
  for (const [key, message] of fresh.messages) if (!isMine(key)) chat.messages.set(key, message);
  for (const key of chat.stored) if (!fresh.messages.has(key) && !isMine(key)) chat.messages.delete(key);
  chat.stored = fresh.stored;
  Object.assign(chat, { title: fresh.title, named: fresh.named, changed: fresh.changed, settings: fresh.settings });
  chat.leaf = chat.messages.has(chat.leaf) ? newestLeaf(chat.messages, chat.leaf) : fresh.leaf;
}

// Run a write; a storage that is full or forbidden is told once and the page goes on without it.
async function write(work, id) {
  try {
    const done = await work();
    tell(id);
    return done;
  } catch {
    failed?.("This browser keeps no chats: its storage is full or switched off.");
    return undefined;
  }
}

export async function load() {
  list = await database.allChats().catch(() => {
    failed?.("This browser keeps no chats: its storage is switched off.");
    return list;
  });
}

export const all = () => [...list].sort((one, other) => other.changed - one.changed);
export const find = (id) => list.find((one) => one.id === id);

// A chat that is kept from its first message on.
export const create = (settings) => {
  const now = Date.now();
  return { id: newId(), title: "New chat", named: false, created: now, changed: now, leaf: null, settings: { ...settings }, messages: new Map(), stored: new Set() };
};

const recordOf = ({ messages, stored, ...record }) => record;

// A chat with its messages as they are now; `stored` are the ids of those on disk.
export async function open(id) {
  const record = await database.chat(id).catch(() => undefined);
  if (!record) return undefined;
  const messages = new Map((await database.messagesOf(id)).map((one) => [one.id, one]));
  return { ...record, messages, stored: new Set(messages.keys()), leaf: leafOf(messages, record.leaf) };
}

// Change fields of a chat, here and on disk; adds it if it is new and has a message.
export async function change(chat, fields) {
  Object.assign(chat, fields);
  const known = find(chat.id);
  if (known) Object.assign(known, fields);
  else if (chat.messages.size) list.push(recordOf(chat));
  else return;
  await write(() => (known ? database.changeChat(chat.id, fields) : database.addChat(recordOf(chat))), chat.id);
}

export async function keep(chat, message) {
  chat.messages.set(message.id, message);
  await write(() => database.putMessage(structuredClone(message)), chat.id);
  chat.stored.add(message.id);
}

export async function drop(chat, message) {
  chat.messages.delete(message.id);
  chat.stored.delete(message.id);
  await write(() => database.removeMessage(message.id), chat.id);
}

export async function remove(id) {
  list = list.filter((one) => one.id !== id);
  await write(() => database.removeChat(id), id);
}

export async function removeAll() {
  list = [];
  await write(() => database.clear());
}

// Whole chats, with messages, for a file or from one.
export async function everything(ids) {
  const found = await Promise.all((ids ?? all().map((one) => one.id)).map(open));
  return found.filter(Boolean).map((chat) => ({ ...recordOf(chat), messages: [...chat.messages.values()] }));
}

// Bring chats in: those that are here get the messages that they lack.
export async function add(chats) {
  for (const { messages, ...record } of chats) {
    if (!find(record.id)) await write(() => database.addChat(record), record.id);
    for (const message of messages) await write(() => database.putMessage(message), record.id);
  }
  await load();
}

// Ids of the chats with these words in their title or messages.
export async function search(words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const texts = new Map(list.map((chat) => [chat.id, [chat.title]]));
  for (const message of await database.allMessages()) texts.get(message.chat)?.push(message.content ?? "");
  const holds = (parts) => {
    const text = parts.join("\n").toLowerCase();
    return wanted.every((word) => text.includes(word));
  };
  return new Set([...texts].filter(([, parts]) => holds(parts)).map(([id]) => id));
}
