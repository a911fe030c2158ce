import assert from "node:assert/strict";
import test from "node:test";
import { boots, CDROM_LIMIT, kind, remarks } from "../app/image-words.js";
import { inspect } from "../app/inspect/inspect.js";
import { blobSource } from "../app/inspect/source.js";

const EFI = "28732ac11ff8d211ba4b00a0c93ec93b";
const LINUX = "af3dc60f838472478e793d69d8477de4";

/** An image of zeros but for what is put there. */
class Sketch {
  /** @param {number} size */
  constructor(size) {
    this.bytes = Buffer.alloc(size);
    /** @type {number} of the longest read */
    this.longest = 0;
  }

  /** @param {number} at @param {string | number[]} what @returns {this} */
  put(at, what) {
    this.bytes.set(typeof what === "string" ? Buffer.from(what, "latin1") : what, at);
    return this;
  }

  /** @param {number} at @param {number} value @returns {this} */
  u16(at, value) {
    this.bytes.writeUInt16LE(value, at);
    return this;
  }

  /** @param {number} at @param {number} value @returns {this} */
  u32(at, value) {
    this.bytes.writeUInt32LE(value, at);
    return this;
  }

  /** @param {number} at @param {number} value @returns {this} */
  u64(at, value) {
    this.bytes.writeBigUInt64LE(BigInt(value), at);
    return this;
  }

  get source() {
    return {
      size: this.bytes.length,
      /** @param {number} offset @param {number} length */
      read: async (offset, length) => {
        assert.ok(offset >= 0 && offset + length <= this.bytes.length, "a read past the end");
        this.longest = Math.max(this.longest, length);
        return new Uint8Array(this.bytes.subarray(offset, offset + length));
      },
    };
  }
}

/** @param {number[]} platforms of El Torito @param {number} [size] */
function iso(platforms, size = 40 * 2048) {
  const image = new Sketch(size)
    .put(16 * 2048, "\x01CD001\x01")
    .put(16 * 2048 + 40, "DEBIAN_12".padEnd(32))
    .u32(16 * 2048 + 80, 40)
    .u16(16 * 2048 + 128, 2048)
    .put(18 * 2048, "\xffCD001\x01");
  if (platforms.length === 0) return image.put(17 * 2048, "\x02CD001\x01");
  const [first, ...others] = platforms;
  const catalogue = 20 * 2048;
  image.put(17 * 2048, "\x00CD001\x01EL TORITO SPECIFICATION").u32(17 * 2048 + 0x47, 20);
  image
    .put(catalogue, [1, first])
    .u16(catalogue + 30, 0xaa55)
    .put(catalogue + 32, [0x88]);
  others.forEach((platform, i) => {
    image.put(catalogue + 64 + i * 64, [0x91, platform]).put(catalogue + 96 + i * 64, [0x88]);
  });
  return image;
}

/** @param {Sketch} image @param {string[]} types of partitions, of ten sectors each @returns {Sketch} */
function withGpt(image, types) {
  const sectors = image.bytes.length / 512;
  image
    .put(446, [0, 0, 0, 0, 0xee])
    .u32(454, 1)
    .u32(458, sectors - 1)
    .u16(510, 0xaa55);
  image
    .put(512, "EFI PART")
    .u64(544, sectors - 1)
    .u64(584, 2)
    .u32(592, 128)
    .u32(596, 128);
  types.forEach((type, i) => {
    const at = 1024 + i * 128;
    image
      .put(at, [...Buffer.from(type, "hex")])
      .u64(at + 32, 40 + i * 10)
      .u64(at + 40, 49 + i * 10);
  });
  return image;
}

test("an ISO has its label and boots as its catalogue says", async () => {
  const found = await inspect(iso([0, 0xef]).source);
  assert.equal(kind(found), "ISO 9660 disc");
  assert.equal(found.label, "DEBIAN_12");
  assert.equal(boots(found), "BIOS and UEFI");
  assert.equal(boots(await inspect(iso([0xef]).source)), "UEFI");
  assert.equal(boots(await inspect(iso([]).source)), "No boot loader found");
});

test("an ISO with a partition table is a hybrid", async () => {
  const image = iso([0])
    .put(0, [0x33])
    .put(446, [0x80, 0, 0, 0, 0x17])
    .u32(458, 160)
    .u16(510, 0xaa55);
  assert.equal(
    kind(await inspect(image.source)),
    "ISO 9660 hybrid, for discs and USB drives (MBR, 1 partition)",
  );
});

test("UDF is recognised, beside ISO 9660 and alone", async () => {
  const bridge = iso([])
    .put(19 * 2048, "\0BEA01")
    .put(20 * 2048, "\0NSR02")
    .put(21 * 2048, "\0TEA01");
  assert.equal(kind(await inspect(bridge.source)), "ISO 9660 and UDF disc");
  const plain = new Sketch(40 * 2048).put(16 * 2048, "\0BEA01").put(17 * 2048, "\0NSR03");
  assert.equal(kind(await inspect(plain.source)), "UDF disc");
});

test("a GPT disk boots by UEFI where it has an EFI system partition", async () => {
  const disk = await inspect(withGpt(new Sketch(512 * 256), [EFI, LINUX]).source);
  assert.equal(kind(disk), "Disk with 2 partitions (GPT)");
  assert.deepEqual(disk.boots, ["UEFI"]);
  const data = await inspect(withGpt(new Sketch(512 * 256), [LINUX]).source);
  assert.deepEqual(data.boots, []);
});

test("an MBR disk boots by its code", async () => {
  const image = new Sketch(512 * 256).put(0, [0xeb]).put(446, [0x80, 0, 0, 0, 0x83]).u32(454, 8);
  const found = await inspect(image.u32(458, 200).u16(510, 0xaa55).source);
  assert.equal(kind(found), "Disk with 1 partition (MBR)");
  assert.deepEqual(found.boots, ["BIOS"]);
});

for (const [what, label, image] of /** @type {[string, string, Sketch][]} */ ([
  ["ext2", "root", new Sketch(4096).u16(1080, 0xef53).put(1144, "root")],
  ["ext3", "", new Sketch(4096).u16(1080, 0xef53).u32(1116, 4)],
  ["ext4", "", new Sketch(4096).u16(1080, 0xef53).u32(1116, 4).u32(1120, 0x2c2)],
  ["FAT16", "STICK", new Sketch(4096).put(43, "STICK      FAT16   ").u16(510, 0xaa55)],
  ["FAT32", "", new Sketch(4096).put(71, "NO NAME    FAT32   ").u16(510, 0xaa55)],
  ["NTFS", "", new Sketch(4096).put(3, "NTFS    ").u16(510, 0xaa55)],
  ["exFAT", "", new Sketch(4096).put(3, "EXFAT   ").u16(510, 0xaa55)],
  ["XFS", "data", new Sketch(4096).put(0, "XFSB").put(108, "data")],
  ["Btrfs", "pool", new Sketch(70000).put(65536 + 64, "_BHRfS_M").put(65536 + 299, "pool")],
  ["SquashFS", "", new Sketch(4096).put(0, "hsqs")],
])) {
  test(`${what} without a partition table`, async () => {
    const found = await inspect(image.source);
    assert.equal(kind(found), `${what} file system, without partitions`);
    assert.equal(found.label, label);
  });
}

for (const [magic, at, name, command] of /** @type {[string, number, string, string][]} */ ([
  ["\x1f\x8b", 0, "a.img.gz", "gzip -dc a.img.gz > a.img"],
  ["\xfd7zXZ\0", 0, "it's.img.xz", "xz -dc 'it'\\''s.img.xz' > 'it'\\''s.img'"],
  ["\x28\xb5\x2f\xfd", 0, "a.zst", "zstd -d a.zst -o a"],
  ["BZh9", 0, "a", "bzip2 -dc a > a.img"],
  ["PK\x03\x04", 0, "-a.zip", "unzip ./-a.zip"],
  ["7z\xbc\xaf\x27\x1c", 0, "a.7z", "7z x a.7z"],
  ["QFI\xfb", 0, "a.qcow2", "qemu-img convert -f qcow2 -O raw a.qcow2 a.raw"],
  ["KDMV", 0, "a.vmdk", "qemu-img convert -f vmdk -O raw a.vmdk a.raw"],
  ["\x7f\x10\xda\xbe", 0x40, "a.vdi", "qemu-img convert -f vdi -O raw a.vdi a.raw"],
  ["vhdxfile", 0, "a.vhdx", "qemu-img convert -f vhdx -O raw a.vhdx a.raw"],
  ["conectix", 3584, "a.vhd", "qemu-img convert -f vpc -O raw a.vhd a.raw"],
])) {
  test(`${name} is no raw image, and the command that makes one is told`, async () => {
    const found = await inspect(new Sketch(4096).put(at, magic).source);
    const [remark] = remarks(found, { name, size: 4096 }, undefined);
    assert.equal(remark.tone, "bad");
    assert.equal(remark.command, command);
    assert.equal(boots(found), "Not as it is");
  });
}

test("an image that ends before its own end is called cut off", async () => {
  const shortened = iso([0], 39 * 2048);
  const found = await inspect(shortened.source);
  const [remark] = remarks(found, { name: "x.iso", size: 39 * 2048 }, undefined);
  assert.match(remark.text, /cut off: it should have 81,920 bytes and has 79,872/);

  const disk = withGpt(new Sketch(512 * 256), [EFI]);
  disk.bytes = disk.bytes.subarray(0, 512 * 255);
  assert.ok((await inspect(disk.source)).end > 512 * 255);
});

test("a disc that a CD-ROM gadget cannot show is remarked upon; one that it can is not", async () => {
  const found = await inspect(iso([0]).source);
  const size = CDROM_LIMIT + 2048;
  assert.equal(remarks(found, { name: "x", size }, "cdrom")[0].tone, "bad");
  assert.equal(remarks(found, { name: "x", size }, undefined)[0].tone, "note");
  const [fine, ...more] = remarks(found, { name: "x", size: CDROM_LIMIT }, "cdrom");
  assert.deepEqual([fine.text, more], ["No problem found.", []]);
  assert.match(remarks(found, { name: "x", size: 81921 }, undefined)[0].text, /2,048/);
});

test("a disk where a CD-ROM is shown is remarked upon, and what is still packed only for that", async () => {
  const image = { name: "x", size: 512 * 256 };
  const disk = await inspect(withGpt(new Sketch(image.size), [EFI]).source);
  assert.match(remarks(disk, image, "cdrom")[0].text, /no disc/);
  assert.match(remarks(disk, image, "disk")[0].text, /No problem/);
  const packed = await inspect(new Sketch(4096).put(0, "\x1f\x8b").source);
  assert.equal(remarks(packed, { name: "x", size: 4097 }, "cdrom").length, 1);
});

test("what an image says never makes a read long, or one outside of it", async () => {
  const image = withGpt(new Sketch(512 * 256), [])
    .u64(584, 2 ** 50)
    .u32(592, 0xffffffff)
    .u32(596, 0xffffffff);
  assert.equal((await inspect(image.source)).table, "GPT");
  const lost = iso([0]).u32(17 * 2048 + 0x47, 0xffffffff);
  assert.deepEqual((await inspect(lost.source)).boots, []);
  assert.ok(image.longest <= 65536 && lost.longest <= 65536);
});

test("anything of any size is looked at without an error", async () => {
  for (let size = 1; size < 3000; size += 97) {
    for (const byte of [0, 0x55, 0xff]) {
      const found = await inspect(blobSource(new Blob([new Uint8Array(size).fill(byte)])));
      assert.equal(found.kind, "unknown");
    }
  }
});
