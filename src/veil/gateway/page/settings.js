// Settings of a chat, named sets of them, and the page's own. In this browser's storage.

// What a chat can set. Empty means: what the model or the gateway has.
export const EMPTY = {
  model: "",
  system: "",
  temperature: "",
  top_p: "",
  top_k: "",
  min_p: "",
  repetition_penalty: "",
  max_tokens: "",
  seed: "",
  tools: "",
};

function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // A browser that keeps nothing: the settings last as long as the page.
  }
}

export const appearance = (value) => {
  if (value !== undefined) write("veil.appearance", value);
  return read("veil.appearance", "auto");
};

// Whether messages go up while they are written, where the gateway can.
export const eager = (value) => {
  if (value !== undefined) write("veil.eager", value);
  return read("veil.eager", true);
};

// Presets by name; the one called "Default" is what new chats begin with. Read anew each time: other tabs write too.
export const DEFAULT = "Default";
export const presets = () => ({ [DEFAULT]: { ...EMPTY }, ...read("veil.presets", {}) });
export const preset = (name) => ({ ...EMPTY, ...presets()[name] });

export function savePreset(name, settings) {
  write("veil.presets", { ...read("veil.presets", {}), [name]: { ...EMPTY, ...settings } });
}

export function removePreset(name) {
  const { [name]: _, ...rest } = read("veil.presets", {});
  write("veil.presets", rest);
}

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"];

// The part of a request that settings say. Throws an Error in words where the functions are no JSON.
export function requestOf(settings) {
  const request = { model: settings.model };
  for (const name of NUMBERS) if (settings[name] !== "" && settings[name] !== undefined) request[name] = Number(settings[name]);
  if (settings.max_tokens) request.max_completion_tokens = Number(settings.max_tokens);
  const tools = toolsOf(settings.tools);
  if (tools.length) request.tools = tools;
  return request;
}

// Functions as OpenAI writes them, or the bare functions.
export function toolsOf(text) {
  if (!text?.trim()) return [];
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error("The functions of this chat are no JSON; look at its settings.");
  }
  const list = Array.isArray(found) ? found : [found];
  if (!list.every((one) => (one?.function ?? one)?.name)) throw new Error("Each function of this chat needs a name; look at its settings.");
  return list.map((one) => (one.function ? one : { type: "function", function: one }));
}
