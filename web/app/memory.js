// What outlives a reload, the tab and the browser. In IndexedDB, because nothing else keeps a file's handle.

/** @typedef {import("./resume.js").Memo} Memo */

const DATABASE = "nbd-proxy";
const STORE = "sessions";

/** @returns {Promise<Memo[]>} none where the browser does not remember, as in some private windows */
export async function recall() {
  try {
    return await inStore("readonly", (store) => store.getAll());
  } catch {
    return [];
  }
}

/** @param {Memo} memo in place of its configuration's last one */
export async function remember(memo) {
  try {
    await inStore("readwrite", (store) => store.put(memo));
  } catch {
    // Then a reload will ask for the file and begin with another ID, which a held session takes as well.
  }
}

/** @param {string} configuration */
export async function forget(configuration) {
  try {
    await inStore("readwrite", (store) => store.delete(configuration));
  } catch {
    // Nothing was remembered.
  }
}

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} action
 * @returns {Promise<T>}
 */
async function inStore(mode, action) {
  const database = await open();
  try {
    // Strict: a browser that is killed, or its machine, must not forget what it was serving.
    const transaction = database.transaction(STORE, mode, { durability: "strict" });
    const request = action(transaction.objectStore(STORE));
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    return request.result;
  } finally {
    database.close();
  }
}

/** @returns {Promise<IDBDatabase>} */
function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () =>
      request.result.createObjectStore(STORE, { keyPath: "configuration" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
