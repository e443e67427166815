// The list of chats: by date, searched, renamed and deleted.

import * as answering from "/page/answering.js";
import * as chats from "/page/chats.js";
import { asked, confirmed } from "/page/dialogs.js";
import { $, iconButton, make } from "/page/dom.js";

let acts = { open() {}, removed() {}, renamed() {} };
let found = null; // ids, while something is searched

export function bindSidebar(given) {
  acts = given;
  let waiting = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      const words = $("search").value.trim();
      found = words ? await chats.search(words) : null;
      acts.found();
    }, 150);
  });
}

export function show(current) {
  const list = chats.all().filter((one) => !found || found.has(one.id));
  const groups = new Map();
  for (const chat of list) {
    const name = dateOf(chat.changed);
    groups.set(name, [...(groups.get(name) ?? []), chat]);
  }
  const sections = [...groups].map(([name, members], index) => {
    const heading = make("h2", { id: `chats-${index}`, text: name });
    return make("section", { "aria-labelledby": heading.id }, heading, make("ul", {}, ...members.map((chat) => itemOf(chat, current))));
  });
  if (found && !list.length) sections.push(make("p", { class: "none", text: "No chat has these words." }));
  $("chat-list").replaceChildren(...sections);
}

function itemOf(chat, current) {
  const here = chat.id === current.id;
  const open = make("button", { type: "button", class: "open", title: `${chat.title}\n${new Date(chat.changed).toLocaleString()}`, "aria-current": here ? "true" : null, onclick: () => acts.open(chat.id) }, make("span", { text: chat.title }));
  if (answering.isRunning(chat)) open.append(make("span", { class: "pulse", role: "img", "aria-label": "an answer is being written" }));
  return make(
    "li",
    { class: here ? "here" : null },
    open,
    iconButton("pencil", `Rename “${chat.title}”`, () => rename(chat), { class: "bare rename" }),
    iconButton("bin", `Delete “${chat.title}”`, () => remove(chat), { class: "bare remove" }),
  );
}

export async function rename(chat) {
  const title = await asked("Name of this chat", chat.title, "Rename");
  if (title === null) return;
  await chats.change(chats.find(chat.id) ?? chat, { title, named: true });
  acts.renamed(chat.id, title);
}

export async function remove(chat) {
  if (!(await confirmed(`Delete “${chat.title}”? It is kept nowhere else.`, "Delete"))) return;
  answering.stop(chat);
  await chats.remove(chat.id);
  acts.removed(chat.id);
}

// The chat above or below one, as the list shows them.
export function neighbour(current, step) {
  const list = chats.all().filter((one) => !found || found.has(one.id));
  const at = list.findIndex((one) => one.id === current.id);
  return list[at + step] ?? null;
}

function dateOf(moment) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const days = Math.ceil((midnight - moment) / 86_400_000);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days <= 7) return "Last seven days";
  return new Date(moment).toLocaleDateString([], { month: "long", year: "numeric" });
}
