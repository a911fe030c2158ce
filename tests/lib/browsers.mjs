// The browsers that the tests drive. Each gives tabs with `go`, `evaluate`, `choose`, `click` and `close`.

import { firefox } from "./bidi.mjs";
import { chromium, webkit } from "./webdriver.mjs";

export { INSECURE_NAME } from "./webdriver.mjs";

export const BROWSERS = { chromium, firefox, webkit };

/** @typedef {Awaited<ReturnType<typeof chromium>> | Awaited<ReturnType<typeof firefox>>} Browser */
/** @typedef {Awaited<ReturnType<Browser["open"]>>} Tab */
