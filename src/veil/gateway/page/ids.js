// Names that no other tab makes. crypto.randomUUID is missing over plain HTTP, getRandomValues never is.

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const TAB = newId();
