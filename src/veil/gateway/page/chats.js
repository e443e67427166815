// Chats and settings, in this browser's storage and nowhere else.

const DEFAULTS = { model: "", system: "", temperature: 0.3, topP: 1, maxTokens: 512, seed: "", appearance: "auto" };

function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

export const settings = { ...DEFAULTS, ...read("veil.settings", {}) };

export function saveSettings() {
  localStorage.setItem("veil.settings", JSON.stringify(settings));
}

let chats = [];
load();

export function load() {
  const found = read("veil.chats", []);
  chats = Array.isArray(found) ? found.filter((chat) => chat && Array.isArray(chat.turns)) : [];
}

export const all = () => chats;
export const find = (id) => chats.find((chat) => chat.id === id);

export function create() {
  return { id: crypto.randomUUID(), title: "New chat", changed: Date.now(), turns: [] };
}

// Keep a chat. When the storage is full the oldest chats' pictures go first, then the oldest chats.
export function keep(chat) {
  chat.changed = Date.now();
  if (!find(chat.id)) chats.push(chat);
  chats.sort((one, other) => other.changed - one.changed);
  while (!write()) {
    const pictured = chats.findLast((one) => one.turns.some((turn) => turn.saw?.samples.length));
    if (pictured) pictured.turns.forEach((turn) => turn.saw && (turn.saw.samples = []));
    else if (chats.length > 1) chats.pop();
    else return;
  }
}

export function remove(id) {
  chats = chats.filter((chat) => chat.id !== id);
  write();
}

export function removeAll() {
  chats = [];
  write();
}

function write() {
  try {
    localStorage.setItem("veil.chats", JSON.stringify(chats));
    return true;
  } catch {
    return false;
  }
}
