// The small part of Markdown that models write, as DOM nodes. Text stays text: no HTML is parsed and no link is made,
// since the words come from a model that somebody else holds.

export function render(source, target) {
  target.replaceChildren(...blocks(source.split("\n")));
}

function* blocks(lines) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = line.match(/^\s*(```+|~~~+)/);
    if (fence) {
      let end = at + 1;
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end += 1;
      yield element("pre", element("code", lines.slice(at + 1, end).join("\n")));
      at = end + 1;
    } else if (!line.trim()) {
      at += 1;
    } else if (/^#{1,6}\s/.test(line)) {
      yield element("h3", ...inline(line.replace(/^#+\s+/, "")));
      at += 1;
    } else {
      const kind = kindOf(line);
      let end = at + 1;
      while (end < lines.length && lines[end].trim() && (kind === "p" ? kindOf(lines[end]) === "p" : continues(lines[end], kind))) end += 1;
      yield block(kind, lines.slice(at, end));
      at = end;
    }
  }
}

const ITEM = { ul: /^\s*[-*+]\s+/, ol: /^\s*\d{1,4}[.)]\s+/, blockquote: /^\s*>\s?/ };

function kindOf(line) {
  if (/^\s*(```|~~~)/.test(line) || /^#{1,6}\s/.test(line)) return "other";
  return Object.keys(ITEM).find((kind) => ITEM[kind].test(line)) ?? "p";
}

const continues = (line, kind) => kindOf(line) === kind || (/^\s{2,}\S/.test(line) && kindOf(line) === "p");

function block(kind, lines) {
  if (kind === "p") return element("p", ...inline(lines.join("\n")));
  if (kind === "blockquote") return element("blockquote", ...inline(lines.map((line) => line.replace(ITEM[kind], "")).join("\n")));
  const items = [];
  for (const line of lines) {
    if (ITEM[kind].test(line)) items.push(line.replace(ITEM[kind], ""));
    else items[items.length - 1] += "\n" + line.trim();
  }
  const list = element(kind, ...items.map((item) => element("li", ...inline(item))));
  if (kind === "ol") list.start = parseInt(lines[0], 10) || 1;
  return list;
}

function* inline(text) {
  const marked = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*/g;
  let at = 0;
  for (const found of text.matchAll(marked)) {
    if (found.index > at) yield text.slice(at, found.index);
    const [whole, code, strong] = found;
    if (code !== undefined) yield element("code", code);
    else if (strong !== undefined) yield element("strong", strong);
    else yield element("em", found[3]);
    at = found.index + whole.length;
  }
  if (at < text.length) yield text.slice(at);
}

export function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
