// The chat page: which chat is open, and what its parts tell each other.

import * as answering from "/page/answering.js";
import * as api from "/page/api.js";
import * as chats from "/page/chats.js";
import * as composer from "/page/composer.js";
import { confirmed } from "/page/dialogs.js";
import { $, announce, copyText, drawIcons } from "/page/dom.js";
import { prepare } from "/page/eager.js";
import { bindKeys } from "/page/keys.js";
import { takeOver } from "/page/legacy.js";
import * as panel from "/page/panel.js";
import { bindPreferences, open as openSettings } from "/page/preferences.js";
import { DEFAULT, eager, preset, requestOf } from "/page/settings.js";
import * as sidebar from "/page/sidebar.js";
import * as status from "/page/status.js";
import { download, fileName, toJson, toMarkdown } from "/page/transfer.js";
import { pathTo } from "/page/tree.js";
import * as turns from "/page/turns.js";
import { messagesOf, requestFor } from "/page/wording.js";

let chat = null;
let models = [];

const modelOf = () => models.find(({ id }) => id === chat?.settings.model) ?? models[0];
const begin = () => chats.create({ ...preset(DEFAULT), model: chat?.settings.model || preset(DEFAULT).model || models[0]?.id || "" });

// What is on the screen -----------------------------------------------------------------------------------------------

function showAll({ toEnd = false } = {}) {
  const stick = toEnd || turns.atEnd();
  const at = $("scroll").scrollTop;
  turns.show(chat);
  if (stick) turns.toEnd();
  else $("scroll").scrollTop = at;
  showHead();
}

function showHead() {
  sidebar.show(chat);
  $("title").textContent = chat.title;
  document.title = chat.messages.size ? `${chat.title} · veil` : "veil";
  $("chat-menu").hidden = !chat.messages.size;
  showSending();
}

function showSending() {
  const running = answering.isRunning(chat);
  const { text, attachments } = composer.draft();
  $("stop").hidden = !running;
  $("send").hidden = running;
  $("send").disabled = (!text && !attachments.length) || composer.isReading();
}

function showModels() {
  const known = models.some(({ id }) => id === chat.settings.model);
  if (!known && models.length) chat.settings.model = models[0].id;
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  $("model").value = chat.settings.model;
  $("model").disabled = models.length < 2;
}

// Chats ---------------------------------------------------------------------------------------------------------------

async function openChat(id) {
  const found = id === chat?.id ? chat : answering.openOf(id) ?? (await chats.open(id));
  turnTo(found ?? begin());
}

function turnTo(one) {
  const isNew = !chats.find(one.id);
  chat = one;
  history.replaceState(null, "", isNew ? location.pathname : `#${chat.id}`);
  composer.tell("");
  composer.turnTo(chat, isNew);
  showModels();
  panel.showPanel(chat);
  showAll({ toEnd: true });
  closeMenu();
  counted();
  if (matchMedia("(pointer: fine)").matches) $("prompt").focus();
}

const newChat = () => turnTo(begin());

function closeMenu() {
  document.body.classList.remove("menu");
  $("shade").hidden = true;
  $("menu").setAttribute("aria-expanded", "false");
}

chats.onFailure((words) => composer.tell(words));
chats.onElsewhere(async ({ chat: id }) => {
  if (id === undefined || id === chat.id) {
    const fresh = await chats.open(chat.id);
    if (!fresh && !answering.isRunning(chat) && chat.messages.size && !chats.find(chat.id)) return turnTo(begin());
    if (fresh) chats.merge(chat, fresh, (key) => answering.isWritten({ id: key }));
    return showAll();
  }
  showHead();
});

// A tab that was closed in the midst of an answer leaves one that nobody writes.
setInterval(() => chat && document.querySelector(".turn.writing") && !answering.isRunning(chat) && !turns.somebodyWrites(chat) && showAll(), 1000);

// Asking --------------------------------------------------------------------------------------------------------------

function send(text, attachments) {
  if (answering.isRunning(chat)) return false;
  composer.tell("");
  answering.ask(chat, chat.leaf, text, attachments);
  return true;
}

answering.onAnswers({
  begun(one) {
    if (one !== chat) return showHead();
    history.replaceState(null, "", `#${chat.id}`);
    composer.moveTo(chat);
    showAll({ toEnd: true });
    announce("The answer is being written.");
    status.look();
  },
  progress(one, message) {
    if (one === chat) turns.progress(message);
  },
  over(one, message) {
    status.look();
    if (one !== chat) return showHead();
    showAll();
    counted();
    if (message.role === "assistant") announce(message.error ?? `Answer: ${message.content}`);
  },
  unsent(one, message, error) {
    if (error.status === 401) setTimeout(openSettings);
    if (one === chat) {
      if (!chats.find(chat.id)) turnTo({ ...chat, title: "New chat", leaf: null });
      showAll();
      composer.tell(error.message);
      if (message) composer.giveBack(message.content, message.attachments ?? []);
    }
    showHead();
    status.look();
  },
});

turns.onActs({
  edit: (message, text) => answering.isRunning(chat) || answering.ask(chat, message.parent, text, message.attachments),
  retry: (message) => answering.answer(chat, chat.messages.get(message.parent)),
  goOn: (message) => answering.goOn(chat, message),
  result: (message, call, text) => answering.giveResult(chat, message, call, text),
  async branch(leaf) {
    if (answering.isRunning(chat)) return;
    await chats.change(chat, { leaf });
    showAll();
    counted();
  },
});

function again() {
  const last = pathTo(chat.messages, chat.leaf).at(-1);
  if (last?.role === "assistant" && !answering.isRunning(chat)) answering.answer(chat, chat.messages.get(last.parent));
}

// While someone writes, the gateway gets ready for what is coming.
let announced = 0;
function writing() {
  showSending();
  counted();
  if (answering.anyRunning()) return;
  const { text, attachments } = composer.draft();
  if (status.now()?.eager && eager()) return prepare(() => (answering.anyRunning() ? null : begun()));
  if (Date.now() - announced < 1000) return;
  announced = Date.now();
  const characters = attachments.reduce((sum, one) => sum + (one.text?.length ?? 0), text.length);
  if (characters) api.expect(chat.settings.model || undefined, characters, Number(chat.settings.max_tokens) || 256);
}

// The chat with the finished words of what is being written; null if there are none, or pictures with them.
function begun() {
  const { written, attachments } = composer.draft();
  const finished = written.replace(/\S*$/, "").trimEnd();
  if ((!finished && !attachments.length) || attachments.some(({ kind }) => kind === "image")) return null;
  const path = pathTo(chat.messages, chat.leaf);
  if (path.some((one) => one.attachments?.some(({ kind }) => kind === "image"))) return null;
  const { model, tools } = requestOf(chat.settings);
  return { model, tools, messages: messagesOf([...path, { role: "user", content: finished, attachments }], chat.settings) };
}

function counted() {
  composer.count(() => {
    const { text, attachments } = composer.draft();
    const path = pathTo(chat.messages, chat.leaf);
    if (text || attachments.length) path.push({ role: "user", content: text, attachments });
    return path.length ? { model: chat.settings.model, messages: messagesOf(path, chat.settings) } : null;
  });
}

// Events --------------------------------------------------------------------------------------------------------------

async function loadModels() {
  models = await api.models().then((list) => list.filter(({ kind }) => kind === "text"), () => []);
  if (chat) showModels();
}

function bindHeader() {
  $("stop").addEventListener("click", () => {
    answering.stop(chat);
    $("prompt").focus();
  });
  $("new-chat").addEventListener("click", newChat);
  $("menu").addEventListener("click", () => {
    const open = document.body.classList.toggle("menu");
    $("shade").hidden = !open;
    $("menu").setAttribute("aria-expanded", String(open));
    if (open) $("new-chat").focus();
  });
  $("shade").addEventListener("click", closeMenu);
  $("dismiss").addEventListener("click", () => composer.tell(""));
  $("model").addEventListener("change", async () => {
    await changeSettings({ ...chat.settings, model: $("model").value });
    status.look();
  });
  const menu = $("chat-menu");
  document.addEventListener("click", (event) => menu.open && !event.target.closest("#chat-menu summary") && (menu.open = false));
  $("rename").addEventListener("click", () => sidebar.rename(chat));
  $("export-markdown").addEventListener("click", () => download(fileName(chat.title, "md"), toMarkdown(chat), "text/markdown"));
  $("export-json").addEventListener("click", async () => download(fileName(chat.title, "json"), toJson(await chats.everything([chat.id])), "application/json"));
  $("delete").addEventListener("click", () => sidebar.remove(chat));
  for (const example of document.querySelectorAll(".example")) {
    example.addEventListener("click", () => {
      composer.put(example.textContent);
      $("composer").requestSubmit();
    });
  }
  // A link's address was written by a model that somebody else holds, and may carry words of the chat to another machine.
  $("turns").addEventListener("click", async (event) => {
    const link = event.target.closest("a[href]");
    if (!link) return;
    event.preventDefault();
    const warning = "Open this address? The model wrote it, and it may carry words of this chat to others.";
    if (await confirmed(warning, "Open", { danger: false, detail: link.href })) window.open(link.href, "_blank", "noopener,noreferrer");
  });
}

async function changeSettings(settings) {
  await chats.change(chat, { settings });
  counted();
}

async function start() {
  drawIcons();
  sidebar.bindSidebar({
    open: openChat,
    found: () => sidebar.show(chat),
    removed: (id) => (id === chat.id ? newChat() : showHead()),
    renamed(id, title) {
      if (id === chat.id) Object.assign(chat, { title, named: true });
      showHead();
    },
  });
  composer.bindComposer({ send, sees: () => Boolean(modelOf()?.images), changed: writing });
  panel.bindPanel({ changed: changeSettings });
  bindPreferences({
    connected: () => loadModels().then(status.look),
    replaced: async (id) => (id ? openChat(id) : newChat()),
    told: composer.tell,
  });
  status.bindStatus({
    model: () => chat?.settings.model,
    heard: (now) => $("waiting-for-server").toggleAttribute("hidden", !(now?.server_lost_s > 0)),
  });
  bindHeader();
  bindKeys({
    stop: () => (document.body.classList.contains("menu") ? closeMenu() : answering.stop(chat)),
    newChat,
    search: () => $("search").focus(),
    step(by) {
      const next = sidebar.neighbour(chat, by);
      if (next) openChat(next.id);
    },
    focus: () => $("prompt").focus(),
    editLast: () => turns.editLast(chat),
    copyLast: async () => {
      const last = pathTo(chat.messages, chat.leaf).findLast((one) => one.role === "assistant");
      if (last) announce((await copyText(last.content)) ? "Copied" : "It could not be copied");
    },
    again,
    panel: () => panel.toggle(),
  });
  await chats.load();
  await takeOver();
  const [found] = await Promise.all([location.hash ? chats.open(location.hash.slice(1)) : undefined, loadModels()]);
  turnTo(found ?? begin());
  document.body.dataset.ready = "";
  status.look();
}

start();
