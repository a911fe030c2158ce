// Files and, where the browser gives them, handles of files, which outlive a reload.

/** @typedef {{file: File, handle: FileSystemFileHandle | null}} Picked */

/** What not all browsers have, and TypeScript therefore does not know of. */
const browser =
  /** @type {{showOpenFilePicker?: (options?: object) => Promise<FileSystemFileHandle[]>}} */ (
    /** @type {unknown} */ (globalThis)
  );

/** Whether `pick` works here; elsewhere a file input does what it can. */
export const canPick = typeof browser.showOpenFilePicker === "function";

/**
 * Lets the person choose a file, in answer to a click of theirs.
 * @returns {Promise<Picked | null>} null: they changed their mind
 * @throws where the browser does not allow it here
 */
export async function pick() {
  try {
    const [handle] = (await browser.showOpenFilePicker?.()) ?? [];
    return { file: await handle.getFile(), handle };
  } catch (error) {
    if (/** @type {Error} */ (error).name === "AbortError") return null;
    throw error;
  }
}

/**
 * @param {DataTransferItem} item a file that was dropped; asked during the event, or it is too late
 * @returns {Promise<FileSystemFileHandle | null>}
 */
export async function handleOf(item) {
  const source =
    /** @type {{getAsFileSystemHandle?: () => Promise<FileSystemFileHandle | null>}} */ (
      /** @type {unknown} */ (item)
    );
  try {
    return (await source.getAsFileSystemHandle?.()) ?? null;
  } catch {
    return null;
  }
}

/**
 * Reads a file by a handle that was kept, asking for the permission once more.
 * @param {FileSystemFileHandle} handle
 * @returns {Promise<File | null>} null: no permission, or the file is not where it was
 */
export async function reopen(handle) {
  const asking =
    /** @type {FileSystemFileHandle & {requestPermission?: (how: object) => Promise<string>}} */ (
      handle
    );
  try {
    const answer = await asking.requestPermission?.({ mode: "read" });
    const allowed = answer === undefined || answer === "granted";
    return allowed ? await handle.getFile() : null;
  } catch {
    return null;
  }
}
