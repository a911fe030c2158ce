// The Debian package, made of the program under test.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { output } from "./process.mjs";
import { PROGRAM, ROOT } from "./program.mjs";

/** What `cargo xtask man` wrote; `cargo xtask test` says where. */
const MANUAL = process.env.MANUAL ?? join(ROOT, "target/manual");

/** A debug build is large, and the tests are in a hurry. */
const env = { ...process.env, DPKG_DEB_COMPRESSOR_TYPE: "none" };

/** Two versions of the package, of which the second differs in nothing but its number. */
export class Packages {
  /** @param {string} folder */
  constructor(folder) {
    this.folder = folder;
    this.old = join(folder, "old.deb");
    this.new = join(folder, "new.deb");
  }

  static async make() {
    const packages = new Packages(await mkdtemp(join(tmpdir(), "nbd-proxy-packages-")));
    const { folder } = packages;
    await output(join(ROOT, "packaging/debian/build"), [PROGRAM, MANUAL, folder], { env });
    const renumber = `mv nbd-proxy_*.deb old.deb
      dpkg-deb -R old.deb tree
      sed -i 's/^Version: .*/&+next/' tree/DEBIAN/control
      dpkg-deb --root-owner-group -b tree new.deb`;
    await output("sh", ["-ec", renumber], { cwd: folder, env });
    return packages;
  }

  async remove() {
    await rm(this.folder, { recursive: true, force: true });
  }
}
