// Beside an answer: the bytes that the server saw of it, as a strip, and what it cost.

import { element } from "/page/markdown.js";

const COLUMNS = 52;
const ROWS = 16;

export const begin = () => ({ samples: [], up: 0, down: 0, ready: 0, seconds: 0, tokens: 0, first: 0, rows: 0, cached: 0, bits: 0, mode: "", checked: null });

// Take a chunk's trace; its sample becomes a column of the strip if it is new.
export function note(saw, sent) {
  const column = sent.sample.slice(0, 2 * ROWS);
  if (column && saw.samples.at(-1) !== column) saw.samples.push(column);
  if (saw.samples.length > COLUMNS) saw.samples.shift();
  Object.assign(saw, { up: sent.bytes_up, down: sent.bytes_down, ready: sent.rows_ready });
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
    bits: veil.security_bits,
    mode: veil.mode,
    checked: veil.checked,
  });
}

export class Panel {
  constructor(saw) {
    this.canvas = element("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "Bytes that the server received for this answer. They look like noise.");
    this.list = element("dl");
    this.bytes = element("code");
    const caption = element("figcaption", "What the server saw");
    this.summary = element("summary");
    this.node = element("figure", caption, this.canvas, element("details", this.summary, this.list, this.bytes));
    this.node.className = "saw";
    this.saw = saw;
  }

  show() {
    const { saw } = this;
    const facts = [["sent", size(saw.up)], ["received", size(saw.down)]];
    if (saw.tokens) {
      facts.push(["until the first token", `${saw.first.toFixed(2)} s`]);
      if (saw.tokens > 1) facts.push(["a token", `${saw.seconds.toFixed(3)} s`]);
      facts.push(["rows", saw.cached ? `${saw.rows}, ${saw.cached} reused` : `${saw.rows}`]);
      facts.push(["security", saw.bits ? `${saw.bits} bits` : "test only"]);
      if (saw.mode === "remote") facts.push(["answer", saw.checked ? `checked against ${saw.checked}` : "unchecked"]);
    } else {
      facts.push(["rows ready", `${saw.ready}`]);
    }
    this.list.replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
    const traffic = size(saw.up + saw.down);
    this.summary.textContent = saw.tokens > 1 ? `${saw.seconds.toFixed(2)} s a token, ${traffic}` : traffic;
    this.bytes.textContent = (saw.samples.at(-1) ?? "").replace(/..(?=.)/g, "$& ");
    this.draw();
  }

  draw() {
    const { canvas, saw } = this;
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
        paint.fillRect(Math.floor(x * wide), Math.floor(y * high), Math.ceil(wide) - 1 || 1, Math.ceil(high) - 1 || 1);
      }
    });
  }
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
