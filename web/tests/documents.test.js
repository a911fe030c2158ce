// The JavaScript of the documents uses nothing of nbd.js that isn't there: TypeScript takes it.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";

const ROOT = join(import.meta.dirname, "../..");
const LIBRARY = JSON.stringify(join(ROOT, "web/nbd/nbd.js"));
const DOCUMENTS = ["README.md", "docs/embedding.md", "docs/openbmc.md", "web/nbd/README.md"];
const FLAGS = ["--strict", "--noEmit", "--allowJs", "--target", "es2023", "--lib", "es2023,dom"];
/** Other people's modules, and the types that JavaScript's parameters don't name. */
const LENIENCY = ["--noImplicitAny", "false"];
const MODULES = 'declare module "vue";\ndeclare module "react";\n';

/** What the reader's page has, where an example doesn't say it itself. */
const SURROUNDINGS = {
  NBDServer: `import { NBDServer } from ${LIBRARY};`,
  server: `declare const server: import(${LIBRARY}).NBDServer;`,
  file: "declare const file: File;",
  sameFile: "declare const sameFile: File;",
  rememberedId: "declare const rememberedId: string;",
  endpoint: "declare const endpoint: string;",
  id: "declare const id: string;",
  token: "declare const token: string;",
  show: "declare function show(text: string): void;",
  render: `declare function render(state: import(${LIBRARY}).State): void;`,
};

/** @param {string} document @returns {string[]} its examples */
function examples(document) {
  const scripts = document.matchAll(/^```js\n(.*?)^```/gms);
  const pages = document.matchAll(/^```html\n.*?<script type="module">\n(.*?)<\/script>/gms);
  return [...scripts, ...pages].map(([, code]) => code);
}

/** @param {string} example @returns {string} a module of TypeScript */
function whole(example) {
  const code = example
    .replaceAll(/"(\/nbd\/nbd\.js|nbd-proxy)"/g, LIBRARY)
    .replaceAll("{ … }", "{}")
    .replaceAll("=> …;", "=> {};")
    .replaceAll("=> …)", "=> {})");
  const absent = Object.entries(SURROUNDINGS).filter(
    ([name]) => !new RegExp(`(const|var|import \\{) ${name}\\b`).test(code),
  );
  return `${absent.map(([, line]) => line).join("\n")}\n${code}\nexport {};\n`;
}

test("every example of the documents is well-typed", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "nbd-proxy-documents-"));
  t.after(() => rm(folder, { recursive: true }));
  const files = [join(folder, "modules.d.ts")];
  await writeFile(files[0], MODULES);
  for (const name of DOCUMENTS) {
    for (const example of examples(await readFile(join(ROOT, name), "utf8"))) {
      const file = join(folder, `${files.length}-${name.replaceAll("/", "-")}.ts`);
      await writeFile(file, whole(example));
      files.push(file);
    }
  }
  assert.ok(files.length >= 12, `${files.length - 1} examples`);
  const tsc = join(ROOT, "node_modules/.bin/tsc");
  const flags = [
    ...FLAGS,
    ...LENIENCY,
    "--module",
    "esnext",
    "--moduleResolution",
    "bundler",
    "--types",
    "",
  ];
  const { stdout } = await promisify(execFile)(tsc, [...flags, ...files]).catch((error) => error);
  assert.equal(stdout, "");
});

/** The types that the library's users see, by the file that declares them. */
const PUBLIC = {
  "nbd.d.ts": ["Options", "NBDServer"],
  "engine.d.ts": ["State", "EndError", "Held", "Keep", "LastRead", "Range"],
  "image.d.ts": ["CustomImage"],
  "image-error.d.ts": ["ImageError"],
};

/** @param {string} comment @returns {boolean} whether it says anything in words */
function speaks(comment) {
  return /[a-z]{2}/i.test(comment.replaceAll(/@\w+(\s*\{[^}]*\})?(\s*\[?\w+\]?)?/g, ""));
}

/** @param {string} text of declarations @param {string} name @returns {string[]} its members without a word on them */
function silent(text, name) {
  const start = text.search(new RegExp(`^export (declare class|type) ${name}\\b`, "m"));
  assert.notEqual(start, -1, `${name} is not declared`);
  const [body] = text.slice(start).split(/^\};?$/m);
  const members = body.matchAll(
    /((?:^ {4}\/\*\*[\s\S]*?\*\/\n)*)^ {4}(?:readonly )?(\w+)\??[(:]/gm,
  );
  const bare = [...members].filter(
    ([, comment, member]) => member !== "constructor" && !speaks(comment),
  );
  return bare.map(([, , member]) => `${name}.${member}`);
}

test("every public member of nbd.js is documented", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "nbd-proxy-types-"));
  t.after(() => rm(folder, { recursive: true }));
  const project = join(ROOT, "web/tsconfig.types.json");
  const tsc = join(ROOT, "node_modules/.bin/tsc");
  await promisify(execFile)(tsc, ["-p", project, "--outDir", folder]);
  for (const [file, names] of Object.entries(PUBLIC)) {
    const text = await readFile(join(folder, file), "utf8");
    for (const name of names) assert.deepEqual(silent(text, name), []);
  }
});
