// Chats and messages in IndexedDB, a record each: what two tabs write is merged by id, since nobody writes whole lists.

const NAME = "veil";
const STORES = ["chats", "messages"];

let opening = null;

function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("chats", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("chat", "chat");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

// Run work on both stores in one transaction; its result once everything is on disk.
async function inOne(mode, work) {
  const transaction = (await database()).transaction(STORES, mode);
  const over = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
  const found = await work(...STORES.map((name) => transaction.objectStore(name)));
  await over;
  return found;
}

export const allChats = () => inOne("readonly", (chats) => result(chats.getAll()));
export const allMessages = () => inOne("readonly", (_, messages) => result(messages.getAll()));
export const chat = (id) => inOne("readonly", (chats) => result(chats.get(id)));
export const messagesOf = (id) => inOne("readonly", (_, messages) => result(messages.index("chat").getAll(id)));

// Add a chat, or change fields of one that is there; never brings back one that another tab deleted.
export const addChat = (record) => inOne("readwrite", (chats) => result(chats.put(record)));
export const changeChat = (id, fields) =>
  inOne("readwrite", async (chats) => {
    const found = await result(chats.get(id));
    if (found) await result(chats.put({ ...found, ...fields }));
    return Boolean(found);
  });

// Write a message unless its chat is gone.
export const putMessage = (record) =>
  inOne("readwrite", async (chats, messages) => {
    const there = await result(chats.getKey(record.chat));
    if (there) await result(messages.put(record));
    return Boolean(there);
  });

export const removeMessage = (id) => inOne("readwrite", (_, messages) => result(messages.delete(id)));

export const removeChat = (id) =>
  inOne("readwrite", async (chats, messages) => {
    await result(chats.delete(id));
    for (const key of await result(messages.index("chat").getAllKeys(id))) await result(messages.delete(key));
  });

export const clear = () =>
  inOne("readwrite", async (chats, messages) => {
    await result(chats.clear());
    await result(messages.clear());
  });
