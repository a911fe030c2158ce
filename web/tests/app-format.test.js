import assert from "node:assert/strict";
import test from "node:test";
import { bytes, count, duration, quoted, rate } from "../app/format.js";

test("bytes are whole below 1000 and have three digits above", () => {
  assert.equal(bytes(0), "0 bytes");
  assert.equal(bytes(1), "1 byte");
  assert.equal(bytes(999), "999 bytes");
  assert.equal(bytes(1000), "1.00 kB");
  assert.equal(bytes(57_671_680), "57.7 MB");
  assert.equal(bytes(823_132_160), "823 MB");
  assert.equal(bytes(2 ** 63), "9223 PB");
});

test("rounding never makes a fourth digit", () => {
  assert.equal(bytes(9_994), "9.99 kB");
  assert.equal(bytes(9_995), "10.0 kB");
  assert.equal(bytes(99_949), "99.9 kB");
  assert.equal(bytes(99_950), "100 kB");
  assert.equal(bytes(999_499), "999 kB");
  assert.equal(bytes(999_500), "1.00 MB");
});

test("a rate is bytes a second, whole when it is slow", () => {
  assert.equal(rate(0), "0 B/s");
  assert.equal(rate(12.3), "12 B/s");
  assert.equal(rate(12_345_678), "12.3 MB/s");
});

test("a rate just below 1000 is in kilobytes", () => {
  assert.equal(rate(999.4), "999 B/s");
  assert.equal(rate(999.6), "1.00 kB/s");
});

test("durations grow from minutes to days", () => {
  assert.equal(duration(0), "0:00");
  assert.equal(duration(7_999), "0:07");
  assert.equal(duration(754_000), "12:34");
  assert.equal(duration(3_723_000), "1:02:03");
  assert.equal(duration(2 * 86_400_000 + 3_723_000), "2 d 01:02:03");
  assert.equal(duration(-5), "0:00");
});

test("counts have their thousands apart", () => {
  assert.equal(count(1_234_567), "1,234,567");
});

test("a long name keeps its beginning and its end, a short one all of it", () => {
  const name = "debian-12-amd64-netinst-with-firmware-edu.iso";
  assert.equal(name.length, 45);
  assert.equal(quoted(name), `“${name}”`);
  assert.equal(quoted(`${"a".repeat(100)}-the-end.iso`), `“${"a".repeat(28)}…aaaa-the-end.iso”`);
  assert.equal(quoted("💿".repeat(100)), `“${"💿".repeat(28)}…${"💿".repeat(16)}”`);
});
