// Chats that the page kept in localStorage before it had a database: taken over once.

import * as chats from "/page/chats.js";
import { newId } from "/page/ids.js";

export async function takeOver() {
  let found;
  try {
    found = JSON.parse(localStorage.getItem("veil.chats"));
  } catch {
    found = null;
  }
  if (Array.isArray(found)) await chats.add(found.filter((chat) => Array.isArray(chat?.turns)).map(converted));
  localStorage.removeItem("veil.chats");
}

// An old chat, or a list of turns, as a tree of one branch.
export function converted({ id = newId(), title = "Chat", changed = Date.now(), settings = {}, turns }) {
  let parent = null;
  const messages = turns.map(({ role, content, error, stopped, saw }, index) => {
    const state = error ? "broken" : stopped === "stopped" ? "stopped" : stopped ? "length" : "done";
    const message = { id: newId(), chat: id, parent, role, content: content ?? "", created: changed + index, state, error, saw };
    parent = message.id;
    return message;
  });
  return { id, title, named: true, created: changed, changed, leaf: parent, settings, messages };
}
