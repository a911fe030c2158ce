// Files that hold an image but are not one: a machine that is given their bytes finds no disk there.

/** @typedef {import("./source.js").Bytes} Bytes */

/**
 * @typedef {object} Container
 * @property {string} type
 * @property {(name: string) => string} remedy the command that gives the image, for the file of that name
 */

/** @type {{type: string, at: number, magic: string, remedy: Container["remedy"]}[]} */
const PACKED = [
  {
    type: "gzip",
    at: 0,
    magic: "\x1f\x8b",
    remedy: (name) => `gzip -dc ${quoted(name)} > ${quoted(bare(name, /\.(gz|tgz)$/i))}`,
  },
  {
    type: "xz",
    at: 0,
    magic: "\xfd7zXZ\0",
    remedy: (name) => `xz -dc ${quoted(name)} > ${quoted(bare(name, /\.xz$/i))}`,
  },
  {
    type: "Zstandard",
    at: 0,
    magic: "\x28\xb5\x2f\xfd",
    remedy: (name) => `zstd -d ${quoted(name)} -o ${quoted(bare(name, /\.zst$/i))}`,
  },
  {
    type: "bzip2",
    at: 0,
    magic: "BZh",
    remedy: (name) => `bzip2 -dc ${quoted(name)} > ${quoted(bare(name, /\.bz2$/i))}`,
  },
  { type: "ZIP", at: 0, magic: "PK\x03\x04", remedy: (name) => `unzip ${quoted(name)}` },
  { type: "7z", at: 0, magic: "7z\xbc\xaf\x27\x1c", remedy: (name) => `7z x ${quoted(name)}` },
];

/** `format` is what qemu-img calls it. */
const VIRTUAL = [
  { type: "QEMU qcow2", at: 0, magic: "QFI\xfb", format: "qcow2" },
  { type: "VMware VMDK", at: 0, magic: "KDMV", format: "vmdk" },
  { type: "VMware VMDK", at: 0, magic: "# Disk DescriptorFile", format: "vmdk" },
  { type: "VirtualBox VDI", at: 0x40, magic: "\x7f\x10\xda\xbe", format: "vdi" },
  { type: "Hyper-V VHDX", at: 0, magic: "vhdxfile", format: "vhdx" },
  { type: "Virtual PC VHD", at: 0, magic: "conectix", format: "vpc" },
];

/**
 * @param {Bytes} head the image's first bytes, at least 512
 * @returns {(Container & {virtual: boolean}) | null}
 */
export function container(head) {
  const packed = PACKED.find(({ at, magic }) => head.has(at, magic));
  if (packed) return { type: packed.type, virtual: false, remedy: packed.remedy };
  const virtual = VIRTUAL.find(({ at, magic }) => head.has(at, magic));
  return virtual ? converted(virtual.type, virtual.format) : null;
}

/**
 * @param {Bytes} tail the image's last 512 bytes
 * @returns {(Container & {virtual: boolean}) | null} a VHD of fixed size, which tells of itself at its end alone
 */
export function footer(tail) {
  return tail.has(0, "conectix") ? converted("Virtual PC VHD", "vpc") : null;
}

/** @param {string} type @param {string} format @returns {Container & {virtual: boolean}} */
function converted(type, format) {
  /** @param {string} name */
  const remedy = (name) =>
    `qemu-img convert -f ${format} -O raw ${quoted(name)} ${quoted(`${bare(name, /\.\w+$/)}.raw`)}`;
  return { type, virtual: true, remedy };
}

/** @param {string} name @param {RegExp} ending @returns {string} another name than `name` */
function bare(name, ending) {
  const rest = name.replace(ending, "");
  return rest === name || rest === "" ? `${name}.img` : rest;
}

/** @param {string} name @returns {string} as a shell takes it for one word, and never for an option */
function quoted(name) {
  const safe = name.startsWith("-") ? `./${name}` : name;
  return /^[\w./+-]+$/.test(safe) ? safe : `'${safe.replaceAll("'", "'\\''")}'`;
}
