// Under an answer: what the server saw of it, as a strip of bytes and a few figures.

import { icon, make, size } from "/page/dom.js";

const COLUMNS = 64;
const ROWS = 16;

export const begin = () => ({ samples: [], up: 0, down: 0, seconds: 0, tokens: 0, first: 0, rows: 0, cached: 0, trips: 0, bits: 0, mode: "", checked: null });

// Take a chunk's trace; its sample becomes a column of the strip if it is new.
export function note(saw, sent) {
  const column = sent.sample.slice(0, 2 * ROWS);
  if (column && saw.samples.at(-1) !== column) saw.samples.push(column);
  if (saw.samples.length > COLUMNS) saw.samples.shift();
  Object.assign(saw, { up: sent.bytes_up, down: sent.bytes_down });
}

export function noteUsage(saw, usage) {
  const veil = usage.veil;
  Object.assign(saw, {
    up: veil.bytes_up_online + veil.bytes_up_offline,
    down: veil.bytes_down_online + veil.bytes_down_offline,
    seconds: veil.seconds.per_token,
    first: veil.seconds.first_token,
    tokens: usage.completion_tokens,
    rows: veil.rows,
    cached: usage.prompt_tokens_details.cached_tokens,
    trips: veil.trips,
    bits: veil.security_bits,
    mode: veil.mode,
    checked: veil.checked,
  });
}

const drawnStrips = new Set();
export const redrawStrips = () => drawnStrips.forEach((strip) => (strip.canvas.isConnected ? draw(strip) : drawnStrips.delete(strip)));

// The panel: a summary that is always there, the rest when it is opened.
export class Panel {
  constructor(saw) {
    this.saw = saw;
    this.summary = make("summary");
    this.small = strip(saw);
    this.large = strip(saw, "Bytes that the server received for this answer. They look like noise.");
    this.list = make("dl");
    this.bytes = make("code");
    const explained = make("p", { text: "Everything that left this machine for this answer was encrypted. This is a piece of it:" });
    const body = make("div", { class: "saw-body" }, explained, this.large.canvas, this.bytes, this.list);
    this.node = make("details", { class: "saw" }, this.summary, body);
    this.node.addEventListener("toggle", () => draw(this.large));
  }

  show() {
    const { saw } = this;
    const words = [size(saw.up + saw.down)];
    if (saw.tokens > 1) words.push(`${pace(saw.seconds)} a token`);
    if (saw.mode === "remote") words.push(saw.checked ? `checked against ${saw.checked}` : "not checked");
    this.summary.replaceChildren(icon("shield"), make("span", { text: "What the server saw" }), this.small.canvas, make("span", { class: "figures", text: words.join(" · ") }));
    this.list.replaceChildren(...factsOf(saw).flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]));
    this.bytes.textContent = (saw.samples.at(-1) ?? "").replace(/..(?=.)/g, "$& ");
    draw(this.small);
    draw(this.large);
  }
}

const pace = (seconds) => (seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`);

function factsOf(saw) {
  const facts = [["sent", size(saw.up)], ["received", size(saw.down)]];
  if (!saw.tokens) return facts;
  facts.push(["until the first word", `${saw.first.toFixed(2)} s`]);
  if (saw.tokens > 1) facts.push(["each token after it", pace(saw.seconds)]);
  facts.push(["tokens written", `${saw.tokens}`]);
  facts.push(["token rows sent", saw.cached ? `${saw.rows} (${saw.cached} kept from before)` : `${saw.rows}`]);
  facts.push(["round trips", `${saw.trips ?? 0}`]);
  facts.push(["encryption", saw.bits ? `${saw.bits} bits` : "none, or for tests only"]);
  if (saw.mode === "remote") facts.push(["server's answers", saw.checked ? `checked against ${saw.checked}` : "not checked"]);
  return facts;
}

function strip(saw, label) {
  const canvas = make("canvas", label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" });
  const made = { canvas, saw };
  drawnStrips.add(made);
  return made;
}

function draw({ canvas, saw }) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (!width) return;
  canvas.width = width;
  canvas.height = height;
  const paint = canvas.getContext("2d");
  paint.fillStyle = getComputedStyle(canvas).color;
  const [wide, high] = [width / COLUMNS, height / ROWS];
  saw.samples.forEach((column, x) => {
    for (let y = 0; y < ROWS; y += 1) {
      paint.globalAlpha = (parseInt(column.substr(2 * y, 2), 16) || 0) / 255;
      paint.fillRect(Math.floor(x * wide), Math.floor(y * high), Math.max(1, Math.ceil(wide) - 1), Math.max(1, Math.ceil(high) - 1));
    }
  });
}
