// Numbers as people read them. Decimal units: they are what image sizes are advertised in.

const UNITS = ["kB", "MB", "GB", "TB", "PB"];
const WHOLE = new Intl.NumberFormat("en");

/** @param {number} n @returns {string} such as `12,345` */
export function count(n) {
  return WHOLE.format(n);
}

/** @param {number} n bytes @returns {string} such as `512 bytes` or `57.7 MB` */
export function bytes(n) {
  return n < 1000 ? `${Math.round(n)} ${n === 1 ? "byte" : "bytes"}` : scaled(n);
}

/** @param {number} perSecond bytes a second @returns {string} such as `0 B/s` or `1.20 MB/s` */
export function rate(perSecond) {
  return perSecond < 999.5 ? `${Math.round(perSecond)} B/s` : `${scaled(perSecond)}/s`;
}

/** @param {number} ms milliseconds @returns {string} such as `0:07`, `1:02:03` or `2 d 01:02:03` */
export function duration(ms) {
  const total = Math.max(0, Math.floor(ms / 1000));
  const seconds = two(total % 60);
  const minutes = Math.floor(total / 60) % 60;
  const hours = Math.floor(total / 3600) % 24;
  const days = Math.floor(total / 86400);
  if (days > 0) return `${days} d ${two(hours)}:${two(minutes)}:${seconds}`;
  return hours > 0 ? `${hours}:${two(minutes)}:${seconds}` : `${minutes}:${seconds}`;
}

/** @param {number} at milliseconds since 1970 @returns {string} such as `13:05` */
export function clock(at) {
  return new Date(at).toTimeString().slice(0, 5);
}

/** @param {number | null | undefined} ms milliseconds @returns {string} such as `0.4 ms` or `23 ms` */
export function delay(ms) {
  if (ms === null || ms === undefined) return "–";
  return ms < 9.95 ? `${ms.toFixed(1)} ms` : `${WHOLE.format(Math.round(ms))} ms`;
}

/** Characters of a name that are shown within a sentence. */
const NAME_START = 28;
const NAME_END = 16;

/** @param {string} name of an image @returns {string} in quotation marks; a long one without its middle */
export function quoted(name) {
  const characters = [...name];
  const short = [...characters.slice(0, NAME_START), "…", ...characters.slice(-NAME_END)];
  return `“${characters.length > short.length ? short.join("") : name}”`;
}

/** @param {number} n at least 1000 @returns {string} three significant digits and a unit */
function scaled(n) {
  let value = n / 1000;
  let unit = 0;
  // 999.5 would be rounded to a fourth digit.
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return `${value.toFixed(decimals)} ${UNITS[unit]}`;
}

/** @param {number} n @returns {string} */
function two(n) {
  return String(n).padStart(2, "0");
}
