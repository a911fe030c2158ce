/** @module */

/** @typedef {import("./engine.js").State} State */

/**
 * What a person would want to read of a change: a line for each thing that happened, and none for
 * requests, which come by the thousand.
 *
 * @param {State} before
 * @param {State} now
 * @param {string} endpoint
 * @returns {string[]}
 */
export function describeChange(before, now, endpoint) {
  const lines = [];
  if (now.phase !== before.phase) {
    lines.push(describePhase(now, endpoint));
  }
  if (now.server && (now.server.phase !== before.server?.phase || !before.server)) {
    lines.push(
      `The server says: ${now.server.phase}${now.server.device ? `, ${now.server.device}` : ""}`,
    );
  }
  if (now.trouble && now.trouble.code !== before.trouble?.code) {
    lines.push(now.trouble.reason);
  }
  if (before.trouble && !now.trouble) {
    lines.push("The image can be read again.");
  }
  return lines;
}

/**
 * @param {State} state
 * @param {string} endpoint
 */
function describePhase(state, endpoint) {
  if (state.phase === "connecting") {
    return `Connecting to ${endpoint}`;
  }
  if (state.phase === "serving") {
    return `Serving "${state.image?.name}", ${state.image?.size} bytes`;
  }
  if (state.phase === "held") {
    return `${state.held?.reason} Connecting again`;
  }
  return state.error?.reason ?? (state.end?.message || "Ended");
}
