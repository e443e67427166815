// The chat page: what is on the screen, and what happens when someone writes.

import * as api from "/page/api.js";
import * as chats from "/page/chats.js";
import { element, render } from "/page/markdown.js";
import * as saw from "/page/saw.js";
import { bindSettings } from "/page/settings.js";

const $ = (id) => document.getElementById(id);
const { settings } = chats;
const prompt = $("prompt");
const scroll = $("scroll");

let chat = chats.find(location.hash.slice(1)) ?? chats.create();
let running = null; // { stop: AbortController, turn, view }
let panels = [];
let warm = new Set(); // chats whose beginning the gateway still knows

// What is on the screen -----------------------------------------------------------------------------------------------

function showChats() {
  const items = chats.all().map((one) => {
    const open = element("button", one.title);
    open.type = "button";
    open.className = "open";
    open.title = one.title;
    if (one.id === chat.id) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => openChat(one));
    const remove = element("button", "×");
    remove.type = "button";
    remove.className = "remove";
    remove.setAttribute("aria-label", `Delete “${one.title}”`);
    remove.addEventListener("click", () => removeChat(one));
    const item = element("li", open, remove);
    item.toggleAttribute("data-open", one.id === chat.id);
    return item;
  });
  $("chat-list").replaceChildren(...items);
  $("title").textContent = chat.title;
  document.title = chat.turns.length ? `${chat.title} · veil` : "veil";
}

function showTurns() {
  panels = [];
  const views = chat.turns.map((turn) => viewOf(turn));
  $("turns").replaceChildren(...views.map((view) => view.node));
  $("welcome").hidden = chat.turns.length > 0;
  panels.forEach((panel) => panel.show());
  showActions();
  scroll.scrollTop = scroll.scrollHeight;
}

function viewOf(turn) {
  const text = element("div");
  text.className = "text";
  const node = element("li", text);
  node.className = `turn ${turn.role}${turn.error ? " error" : ""}`;
  const who = element("span", turn.role === "user" ? "You: " : "Answer: ");
  who.className = "unseen";
  node.prepend(who);
  const view = { node, text, panel: null };
  if (turn.role === "user") {
    text.textContent = turn.content;
  } else {
    if (turn.error) text.setAttribute("role", "alert");
    turn.error ? (text.textContent = turn.error) : render(turn.content, text);
    const actions = element("div");
    actions.className = "actions";
    node.append(actions);
    if (turn.saw && !turn.error) {
      view.panel = new saw.Panel(turn.saw);
      panels.push(view.panel);
      node.append(view.panel.node);
    }
  }
  return view;
}

// Buttons under the answers: copy each, try the last again.
function showActions() {
  [...$("turns").children].forEach((node, index) => {
    const actions = node.querySelector(".actions");
    if (!actions) return;
    const turn = chat.turns[index];
    const buttons = [];
    if (running?.turn !== turn) {
      if (turn.content) buttons.push(action("Copy", (event) => copy(turn.content, event.currentTarget)));
      if (index === chat.turns.length - 1) buttons.push(action("Try again", again));
      if (turn.stopped) buttons.push(Object.assign(element("span", turn.stopped), { className: "stopped" }));
    }
    actions.replaceChildren(...buttons);
  });
}

function action(name, act) {
  const button = element("button", name);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

async function copy(text, button) {
  await navigator.clipboard.writeText(text).then(
    () => (button.textContent = "Copied"),
    () => (button.textContent = "Cannot copy"),
  );
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function say(text) {
  $("announce").textContent = text;
}

function showRunning() {
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
  $("send").disabled = !prompt.value.trim();
}

// Chats ---------------------------------------------------------------------------------------------------------------

function openChat(one) {
  running?.stop.abort();
  chat = one;
  history.replaceState(null, "", chats.find(chat.id) ? `#${chat.id}` : location.pathname);
  showChats();
  showTurns();
  closeMenu();
  prompt.focus();
}

function removeChat(one) {
  if (!confirm(`Delete “${one.title}”?`)) return;
  chats.remove(one.id);
  if (one.id === chat.id) openChat(chats.create());
  else showChats();
}

function closeMenu() {
  document.body.classList.remove("menu");
  $("shade").hidden = true;
  $("menu").setAttribute("aria-expanded", "false");
}

// Asking --------------------------------------------------------------------------------------------------------------

async function ask(words) {
  chat.turns.push({ role: "user", content: words });
  if (chat.turns.length === 1) chat.title = words.split("\n")[0].slice(0, 60);
  await answer();
}

function again() {
  if (running) return;
  if (chat.turns.at(-1)?.role === "assistant") chat.turns.pop();
  answer();
}

async function answer() {
  const mine = chat;
  const turn = { role: "assistant", content: "", saw: saw.begin() };
  mine.turns.push(turn);
  chats.keep(mine);
  history.replaceState(null, "", `#${mine.id}`);
  showChats();
  const run = (running = { stop: new AbortController(), turn });
  showTurns();
  run.view = { node: $("turns").lastElementChild, panel: panels.at(-1) };
  run.view.text = run.view.node.querySelector(".text");
  run.view.node.classList.add("writing");
  showRunning();
  say("The answer is being written.");
  const saving = setInterval(() => chats.keep(mine), 1000);
  let drawn = false;
  const draw = () => {
    drawn = false;
    const stick = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
    render(turn.content, run.view.text);
    run.view.panel.show();
    if (stick) scroll.scrollTop = scroll.scrollHeight;
  };
  try {
    for await (const chunk of api.chat(requestFor(mine), run.stop.signal)) {
      turn.content += chunk.choices[0]?.delta.content ?? "";
      if (chunk.choices[0]?.finish_reason === "length") turn.stopped = "the longest answer was reached";
      if (chunk.veil) saw.note(turn.saw, chunk.veil);
      if (chunk.usage) saw.noteUsage(turn.saw, chunk.usage);
      if (!drawn) requestAnimationFrame(draw);
      drawn = true;
    }
    warm.add(mine.id);
  } catch (error) {
    if (error.name === "AbortError") turn.stopped = "stopped";
    else turn.error = error.message;
    if (error.status === 401) setTimeout(() => $("open-settings").click());
  }
  clearInterval(saving);
  running = null;
  chats.keep(mine);
  showRunning();
  if (mine === chat) {
    const stick = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
    const at = scroll.scrollTop;
    showTurns();
    if (!stick) scroll.scrollTop = at;
    say(turn.error ? turn.error : `Answer: ${turn.content}${turn.stopped ? ` (${turn.stopped})` : ""}`);
  }
  showChats();
  watch();
}

function requestFor(one) {
  const turns = one.turns.slice(0, -1).filter((turn) => !turn.error);
  const messages = turns.map(({ role, content }) => ({ role, content }));
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  const request = { model: settings.model, messages, temperature: settings.temperature, top_p: settings.topP };
  request.max_completion_tokens = settings.maxTokens;
  if (settings.seed !== "") request.seed = Number(settings.seed);
  return request;
}

// While someone writes, rows are made for what is coming.
let announced = 0;
function writing() {
  showRunning();
  if (running || Date.now() - announced < 1000) return;
  announced = Date.now();
  const before = warm.has(chat.id) ? 0 : chat.turns.reduce((sum, turn) => sum + turn.content.length, settings.system.length);
  api.expect(before + prompt.value.length, Math.min(settings.maxTokens, 256));
}

// The gateway's state -------------------------------------------------------------------------------------------------

let timer = 0;
async function watch() {
  clearTimeout(timer);
  try {
    const now = await api.status();
    const where = now.server ? `on ${now.server}` : "in this process";
    const safe = now.security_bits ? `${now.security_bits} bits` : "not encrypted for real";
    const answers = now.checked ? `checked against ${now.checked} · ` : now.server ? "answers unchecked · " : "";
    $("dot").dataset.state = now.running ? "busy" : "ready";
    const long = element("span", `${now.model} ${where} · ${safe} · ${answers}`);
    long.className = "long";
    $("status-text").replaceChildren(long, `${now.rows_ready} row${now.rows_ready === 1 ? "" : "s"} ready`);
    if (now.kind !== "text") $("welcome-text").textContent = "This model makes embeddings; it cannot chat.";
  } catch (error) {
    $("dot").dataset.state = "down";
    $("status-text").textContent = error.status === 401 ? "needs an API key" : "gateway not reached";
  }
  const soon = running || prompt.value;
  if (!document.hidden) timer = setTimeout(watch, soon ? 1000 : 4000);
}

async function loadModels() {
  const names = await api.models().then((list) => list.map((model) => model.id), () => []);
  $("model").replaceChildren(...names.map((name) => new Option(name, name)));
  if (!names.includes(settings.model) && names.length) settings.model = names[0];
  $("model").value = settings.model;
}

// Events --------------------------------------------------------------------------------------------------------------

function send() {
  const words = prompt.value.trim();
  if (!words || running) return;
  prompt.value = "";
  ask(words);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
prompt.addEventListener("input", writing);
$("stop").addEventListener("click", () => {
  running?.stop.abort();
  prompt.focus();
});
$("new-chat").addEventListener("click", () => openChat(chats.create()));
$("menu").addEventListener("click", () => {
  const open = document.body.classList.toggle("menu");
  $("shade").hidden = !open;
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("new-chat").focus();
});
$("shade").addEventListener("click", closeMenu);
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    prompt.value = example.textContent;
    writing();
    send();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.classList.contains("menu")) closeMenu();
  else if (event.key === "Escape" && !$("settings").open) running?.stop.abort();
  else if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    openChat(chats.create());
  } else if (event.key === "/" && !event.target.closest("input, textarea, select")) {
    event.preventDefault();
    prompt.focus();
  }
});
document.addEventListener("visibilitychange", () => document.hidden || watch());
window.addEventListener("resize", () => panels.forEach((panel) => panel.draw()));
window.addEventListener("storage", (event) => {
  if (event.key !== "veil.chats" || running) return;
  chats.load();
  chat = chats.find(chat.id) ?? chat;
  showChats();
  showTurns();
});

bindSettings({
  themed: () => panels.forEach((panel) => panel.draw()),
  connected: () => loadModels().then(watch),
  forgotten: () => openChat(chats.create()),
});
showChats();
showTurns();
showRunning();
loadModels().then(watch);
