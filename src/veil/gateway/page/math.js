// Formulas: $…$, $$…$$, \(…\) and \[…\] become KaTeX's drawing once it is loaded, and are their source until then.

let katex = null;
let loading = null;

const OPTIONS = { throwOnError: false, trust: false, strict: "ignore", maxExpand: 300, maxSize: 30, output: "htmlAndMathml" };

export function mathRules(markdown) {
  const write = (tokens, index) => {
    const { content, meta } = tokens[index];
    return `<span class="math" data-display="${meta.display}">${markdown.utils.escapeHtml(content)}</span>`;
  };
  markdown.renderer.rules.math = write;
  markdown.renderer.rules.math_block = (tokens, index) => `<p>${write(tokens, index)}</p>`;
  markdown.inline.ruler.before("escape", "math", inline);
  markdown.block.ruler.before("fence", "math_block", block, { alt: ["paragraph", "reference", "blockquote", "list"] });
}

const PAIRS = [
  ["$$", "$$", true],
  ["\\[", "\\]", true],
  ["\\(", "\\)", false],
  ["$", "$", false],
];

function inline(state, silent) {
  const { src, pos } = state;
  const pair = PAIRS.find(([open]) => src.startsWith(open, pos));
  if (!pair) return false;
  const [open, close, display] = pair;
  const start = pos + open.length;
  let end = src.indexOf(close, start);
  while (end > 0 && src[end - 1] === "\\" && close.startsWith("$")) end = src.indexOf(close, end + 1);
  if (end <= start || end >= state.posMax + close.length) return false;
  const body = src.slice(start, end);
  // One dollar is a price unless both signs stand close to what is between them.
  if (open === "$" && (/^\s|\s$|\n\n/.test(body) || /\d/.test(src[end + 1] ?? ""))) return false;
  if (!silent) push(state, "math", body, display);
  state.pos = end + close.length;
  return true;
}

function block(state, from, to, silent) {
  const lineAt = (line) => state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]).trim();
  const first = lineAt(from);
  const pair = PAIRS.slice(0, 2).find(([open]) => first.startsWith(open));
  if (!pair) return false;
  const [open, close] = pair;
  const lines = [first.slice(open.length)];
  let line = from;
  while (!lines.at(-1).endsWith(close)) {
    line += 1;
    if (line >= to) return false;
    lines.push(lineAt(line));
  }
  if (lines.length === 1 && lines[0] === close) return false;
  if (silent) return true;
  const body = lines.join("\n").slice(0, -close.length).trim();
  const token = push(state, "math_block", body, true);
  token.map = [from, line + 1];
  token.block = true;
  state.line = line + 1;
  return true;
}

function push(state, kind, body, display) {
  const token = state.push(kind, "", 0);
  token.content = body.trim();
  token.meta = { display };
  return token;
}

// Draw the formulas in a node, now or when KaTeX is there. KaTeX sets styles by script, which the page's policy allows.
export function drawMath(node) {
  const places = [...node.querySelectorAll(".math")];
  if (!places.length) return;
  const draw = () => places.forEach((place) => katex.render(place.textContent, place, { ...OPTIONS, displayMode: place.dataset.display === "true" }));
  if (katex) draw();
  else load().then(draw, () => {});
}

function load() {
  loading ??= import("/page/vendor/katex.mjs").then((module) => (katex = module.default));
  return loading;
}
