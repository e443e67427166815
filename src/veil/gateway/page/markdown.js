// Markdown as models write it, as DOM nodes. The words come from a model that somebody else holds, so HTML in them stays
// text, what markdown-it makes of the rest goes through DOMPurify as well, and nothing is loaded: a picture is a link.

import { decorateCode } from "/page/code.js";
import { copyButton, make } from "/page/dom.js";
import { drawMath, mathRules } from "/page/math.js";
import markdownit from "/page/vendor/markdown-it.esm.min.mjs";
import DOMPurify from "/page/vendor/purify.es.mjs";

const markdown = markdownit({ html: false, linkify: true, breaks: true });
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
markdown.use(mathRules);

// A picture's address would tell somebody that this answer was read.
markdown.renderer.rules.image = (tokens, index) => {
  const escape = markdown.utils.escapeHtml;
  const address = escape(tokens[index].attrGet("src") ?? "");
  return `<a href="${address}">${escape(tokens[index].content || address)}</a>`;
};

// Alignment by class: the page's policy allows no style in markup.
markdown.core.ruler.push("cells", ({ tokens }) => {
  for (const token of tokens) {
    if (token.type !== "th_open" && token.type !== "td_open") continue;
    const side = /text-align:(\w+)/.exec(token.attrGet("style") ?? "")?.[1];
    token.attrs = side ? [["class", `to-${side}`]] : null;
  }
});

markdown.core.ruler.after("inline", "tasks", ({ tokens, Token }) => {
  tokens.forEach((token, index) => {
    if (token.type !== "inline" || tokens[index - 1]?.type !== "paragraph_open" || tokens[index - 2]?.type !== "list_item_open") return;
    const found = /^\[([ xX])\]\s+/.exec(token.children[0]?.content ?? "");
    if (!found) return;
    token.children[0].content = token.children[0].content.slice(found[0].length);
    const box = new Token("html_inline", "", 0);
    const done = found[1] !== " ";
    box.content = `<input type="checkbox" disabled aria-label="${done ? "done" : "to do"}"${done ? " checked" : ""}> `;
    token.children.unshift(box);
    tokens[index - 2].attrJoin("class", "task");
  });
});

const RULES = {
  RETURN_DOM_FRAGMENT: true,
  FORBID_TAGS: ["img", "video", "audio", "picture", "source", "svg", "math", "form", "button", "textarea", "select", "style", "iframe"],
  FORBID_ATTR: ["style", "srcset", "ping", "id", "name"],
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  if (!/^(https?|mailto):/i.test(node.getAttribute("href") ?? "")) node.removeAttribute("href");
  node.setAttribute("rel", "noopener noreferrer nofollow");
  node.setAttribute("target", "_blank");
});

const drawn = new WeakMap();

// Draw a text into a node. Blocks that are as they were before stay, so a growing answer costs its last block only, and
// what somebody selected stays selected.
export function render(source, target) {
  const wanted = blocksOf(source);
  const there = drawn.get(target) ?? [];
  let same = 0;
  while (same < wanted.length && wanted[same] === there[same] && target.children[same]) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  for (const html of wanted.slice(same)) target.append(blockOf(html));
  drawn.set(target, wanted);
}

// The top-level blocks as HTML, each one element.
function blocksOf(source) {
  const environment = {};
  const tokens = markdown.parse(source, environment);
  const blocks = [];
  let from = 0;
  tokens.forEach((token, index) => {
    if (token.level !== 0 || token.nesting === 1) return;
    blocks.push(markdown.renderer.render(tokens.slice(from, index + 1), markdown.options, environment));
    from = index + 1;
  });
  return blocks;
}

function blockOf(html) {
  const fragment = DOMPurify.sanitize(html, RULES);
  const block = document.createElement("div");
  block.className = "block";
  block.append(fragment);
  for (const table of block.querySelectorAll("table")) wrapTable(table);
  for (const link of block.querySelectorAll("a[href]")) sayWhere(link);
  decorateCode(block);
  drawMath(block);
  return block;
}

// A wide table is scrolled in its own frame, also by keyboard. It is copied as spreadsheets take it.
function wrapTable(table) {
  const cells = [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()).join("\t")).join("\n");
  const frame = make("div", { class: "table", tabindex: 0, role: "group", "aria-label": "Table" });
  table.replaceWith(make("div", { class: "table-row" }, frame, copyButton(() => cells, "Copy this table")));
  frame.append(table);
}

// A link says where it leads, whatever its words are.
function sayWhere(link) {
  link.title = link.href;
  const host = link.protocol === "mailto:" ? "" : link.host;
  if (!host || link.textContent.includes(host)) return;
  const where = document.createElement("span");
  where.className = "where";
  where.textContent = ` (${host})`;
  link.append(where);
}
