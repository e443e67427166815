// The conversation on the screen: one branch of a chat, with arrows where it forks.

import * as answering from "/page/answering.js";
import { $, copyButton, icon, iconButton, make, size } from "/page/dom.js";
import { render } from "/page/markdown.js";
import { Panel } from "/page/saw.js";
import { childrenOf, newestLeaf, pathTo, siblingsOf } from "/page/tree.js";
import { wholeCalls } from "/page/wording.js";

const scroll = () => $("scroll");
const views = new Map(); // by message's id: { node, text, panel, calls }

let acts = {};

// What the buttons do: `edit(message, text)`, `retry(message)`, `goOn(message)`, `branch(leaf)`, `result(message, call, text)`.
export function onActs(given) {
  acts = given;
  followEnd();
}

export function show(chat) {
  views.clear();
  const path = pathTo(chat.messages, chat.leaf);
  const results = new Map(path.filter((one) => one.role === "tool").map((one) => [one.callId, one]));
  const shown = path.filter((one) => one.role !== "tool");
  $("turns").replaceChildren(...shown.map((message) => viewOf(chat, message, results)));
  $("welcome").hidden = path.length > 0;
  views.forEach((view) => view.panel?.show());
  noteEnd();
}

export const toEnd = () => (scroll().scrollTop = scroll().scrollHeight);
export const atEnd = () => scroll().scrollHeight - scroll().scrollTop - scroll().clientHeight < 60;

// Whether there is more below is shown by a button that leads there.
const noteEnd = () => ($("to-end").hidden = atEnd());
function followEnd() {
  scroll().addEventListener("scroll", noteEnd, { passive: true });
  new ResizeObserver(noteEnd).observe(scroll());
  $("to-end").addEventListener("click", () => {
    toEnd();
    $("prompt").focus();
  });
}

// Draw what is new of an answer that is being written.
const pending = new Map();
export function progress(message) {
  if (!pending.size) requestAnimationFrame(drawPending);
  pending.set(message.id, message);
}

function drawPending() {
  const messages = [...pending.values()];
  pending.clear();
  for (const message of messages) {
    const view = views.get(message.id);
    if (!view || !answering.isWritten(message)) continue; // it is drawn as a whole when it is over
    const stick = atEnd();
    render(message.content, view.text);
    drawCalls(message, view.calls, new Map());
    view.panel?.show();
    if (message.content || message.calls) view.node.classList.remove("waiting");
    if (stick) toEnd();
  }
  noteEnd();
}

function viewOf(chat, message, results) {
  const mine = message.role === "user";
  const writing = answering.isWritten(message) || isAlive(message);
  const text = make("div", { class: "text" });
  const node = make("li", { class: `turn ${message.role}`, "data-id": message.id });
  const view = { node, text, panel: null, calls: make("div", { class: "calls" }) };
  views.set(message.id, view);
  node.append(make("span", { class: "unseen", text: mine ? "You: " : "Answer: " }));
  if (mine) {
    text.textContent = message.content;
    if (message.attachments?.length) node.append(attachmentsOf(message.attachments));
    if (message.content) node.append(text);
    node.append(toolsOf(chat, message, view));
    return node;
  }
  node.classList.toggle("writing", writing);
  node.classList.toggle("waiting", writing && !message.content && !message.calls?.length);
  render(message.content, text);
  node.append(text, view.calls);
  drawCalls(message, view.calls, results, writing ? null : message);
  if (!writing) {
    const note = noteOf(message);
    if (note) node.append(note);
    node.append(toolsOf(chat, message, view));
  }
  if (message.saw) {
    view.panel = new Panel(message.saw);
    node.append(view.panel.node);
  }
  return node;
}

// Whether another tab still writes it.
const isAlive = (message) => message.state === "writing" && Date.now() - (message.touched ?? 0) < answering.BROKEN_AFTER_MS;
export const somebodyWrites = (chat) => [...chat.messages.values()].some(isAlive);

function noteOf(message) {
  const words = {
    stopped: "Stopped.",
    length: "The longest answer was reached.",
    broken: `The answer broke off. ${message.error ?? ""}`,
    writing: "The answer broke off: the page was closed.",
  }[message.state];
  if (!words) return null;
  const broken = message.state === "broken" || message.state === "writing";
  const go = make("button", { type: "button", class: "small go-on", text: "Go on", onclick: () => acts.goOn(message) });
  return make("p", { class: `ending${broken ? " bad" : ""}`, role: broken ? "alert" : null }, make("span", { class: "said", text: words }), message.content ? go : null);
}

function toolsOf(chat, message, view) {
  const mine = message.role === "user";
  const row = make("div", { class: "tools" });
  const siblings = siblingsOf(chat.messages, message);
  if (siblings.length > 1) row.append(arrows(chat, message, siblings));
  if (message.content) row.append(copyButton(() => message.content, mine ? "Copy this message" : "Copy this answer"));
  if (mine) row.append(iconButton("pencil", "Edit and send again", () => edit(message, view)));
  else row.append(iconButton("again", "Try again", () => acts.retry(message)));
  const made = new Date(message.created);
  const time = make("time", { datetime: made.toISOString(), title: made.toLocaleString(), text: made.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) });
  row.append(make("span", { class: "when" }, !mine && message.model ? `${message.model} · ` : "", time));
  return row;
}

function arrows(chat, message, siblings) {
  const at = siblings.findIndex((one) => one.id === message.id);
  const go = (step) => acts.branch(newestLeaf(chat.messages, siblings[at + step].id));
  const what = message.role === "user" ? "version" : "answer";
  return make(
    "span",
    { class: "arrows", role: "group", "aria-label": `${what} ${at + 1} of ${siblings.length}` },
    iconButton("left", `Previous ${what}`, () => go(-1), { disabled: at === 0 }),
    make("span", { class: "count", text: `${at + 1}/${siblings.length}` }),
    iconButton("right", `Next ${what}`, () => go(1), { disabled: at === siblings.length - 1 }),
  );
}

function edit(message, view) {
  const field = make("textarea", { class: "editing", "aria-label": "Edit the message", text: message.content, rows: 2 });
  const close = () => form.replaceWith(...before);
  const before = [...view.node.children].filter((child) => !child.classList.contains("unseen"));
  const form = make(
    "form",
    {
      class: "edit",
      onsubmit: (event) => {
        event.preventDefault();
        if (field.value.trim() || message.attachments?.length) acts.edit(message, field.value.trim());
      },
      onkeydown: (event) => {
        if (event.key === "Escape") {
          event.stopPropagation();
          close();
        } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          form.requestSubmit();
        }
      },
    },
    field,
    make("div", { class: "row" }, make("button", { type: "button", text: "Cancel", onclick: close }), make("button", { type: "submit", class: "primary", text: "Send" })),
  );
  before[0].replaceWith(form);
  before.slice(1).forEach((child) => child.remove());
  field.focus();
}

// Begin to edit the last question of a chat.
export function editLast(chat) {
  const last = pathTo(chat.messages, chat.leaf).findLast((one) => one.role === "user");
  const view = last && views.get(last.id);
  if (view?.text.isConnected || view?.node.querySelector(".attachments")) edit(last, view);
}

export function attachmentsOf(attachments, remove) {
  const chips = attachments.map((one) => {
    const picture = one.kind === "image" ? thumbnail(one) : icon("file");
    const about = make("span", { class: "about" }, make("span", { class: "name", text: one.name }), make("span", { class: "size", text: one.kind === "image" ? "picture" : size(one.text.length) }));
    return make("li", {}, picture, about, remove ? iconButton("close", `Remove ${one.name}`, () => remove(one)) : null);
  });
  return make("ul", { class: "attachments", "aria-label": "Attached" }, ...chips);
}

// A picture on a canvas: the page's policy lets no picture be loaded but its own.
function thumbnail({ data, name }) {
  const canvas = make("canvas", { class: "thumbnail", role: "img", "aria-label": name });
  fetchless(data).then((bitmap) => {
    const scale = 96 / Math.max(bitmap.width, bitmap.height);
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  }, () => {});
  return canvas;
}

function fetchless(data) {
  const [head, body] = data.split(",");
  const bytes = Uint8Array.from(atob(body), (character) => character.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: head.slice(5).split(";")[0] }));
}

// Calls of functions, with what they gave or a box for it: functions run nowhere but with the user.
function drawCalls(message, target, results, answerable) {
  const calls = (message.calls ?? []).filter(Boolean);
  const whole = wholeCalls(message);
  target.replaceChildren(...calls.map((call) => {
    const result = results.get(call.id);
    const card = make("section", { class: "call", "aria-label": `The model calls ${call.name}` });
    card.append(make("h3", {}, icon("tool"), make("span", { text: call.name })), make("pre", { tabindex: 0, text: pretty(call.text) }));
    if (result) card.append(make("p", { class: "label", text: "Result" }), make("pre", { tabindex: 0, text: result.content }));
    else if (answerable && whole.includes(call)) card.append(resultForm(message, call));
    return card;
  }));
}

function resultForm(message, call) {
  const field = make("textarea", { rows: 2, "aria-label": `Result of ${call.name}`, placeholder: "What did it give? The model goes on with it." });
  const send = (event) => {
    event.preventDefault();
    acts.result(message, call, field.value);
  };
  return make("form", { class: "result", onsubmit: send }, field, make("button", { type: "submit", class: "small", text: "Give the result" }));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

export const hasAnswer = (chat, message) => childrenOf(chat.messages, message.id).length > 0;
