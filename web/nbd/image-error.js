/** @module */

/**
 * @typedef {"no-image" | "empty-image" | "image-changed" | "image-gone" | "image-denied"
 *   | "image-unreadable"} ImageErrorCode
 */

/** The image is not, or no longer, what can be served. Its message says what to do. */
export class ImageError extends Error {
  /**
   * @param {ImageErrorCode} code
   * @param {string} message for people
   */
  constructor(code, message) {
    super(message);
    this.name = "ImageError";
    /** For programs. */
    this.code = code;
  }
}

/**
 * @param {string} name of the image
 * @param {string} [how]
 */
export function changed(name, how = "it can't be read any more") {
  return new ImageError(
    "image-changed",
    `"${name}" changed on disk since it was chosen: ${how}. Stop, and choose it again.`,
  );
}

/**
 * @param {unknown} cause what a browser's file API or somebody's read() rejected with
 * @param {string} name of the image
 * @returns {ImageError}
 */
export function imageErrorFrom(cause, name) {
  const { name: kind, message } = cause instanceof Error ? cause : new Error(String(cause));
  switch (kind) {
    case "NotReadableError":
      return changed(name);
    // Firefox's word for a file that is not there.
    case "AbortError":
    case "NotFoundError":
      return new ImageError(
        "image-gone",
        `"${name}" is not there as it was: it was changed, moved or deleted, or its drive was ` +
          "removed. Stop, and choose it again.",
      );
    case "NotAllowedError":
    case "SecurityError":
      return new ImageError("image-denied", `The browser may not read "${name}". Choose it again.`);
    default:
      return new ImageError("image-unreadable", `"${name}" can't be read: ${message}`);
  }
}
