// A chat's messages are a tree: an answer that is tried again and a question that is edited are new branches.
// `messages` is a Map by id; each has `parent`, the id before it or null.

// From the first message to `leaf`.
export function pathTo(messages, leaf) {
  const path = [];
  const seen = new Set();
  for (let at = messages.get(leaf); at && !seen.has(at.id); at = messages.get(at.parent)) {
    seen.add(at.id);
    path.unshift(at);
  }
  return path;
}

export const childrenOf = (messages, id) =>
  [...messages.values()].filter((one) => (one.parent ?? null) === id).sort((one, other) => one.created - other.created);

// The messages in a message's place, itself included, oldest first.
export const siblingsOf = (messages, message) => childrenOf(messages, message.parent ?? null);

// Down from a message along the newest branches.
export function newestLeaf(messages, id) {
  const seen = new Set();
  let at = id;
  for (;;) {
    seen.add(at);
    const next = childrenOf(messages, at).findLast((one) => !seen.has(one.id));
    if (!next) return at;
    at = next.id;
  }
}

// Where a chat stands: its leaf if it is still there, else the newest message's branch.
export function leafOf(messages, leaf) {
  if (messages.has(leaf)) return leaf;
  const newest = [...messages.values()].sort((one, other) => one.created - other.created).at(-1);
  return newest ? newestLeaf(messages, newest.id) : null;
}
