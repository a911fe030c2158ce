// nbd-proxy as a service that systemd runs in a guest, from its Debian package.

import { Setting } from "./guest.mjs";
import { atEnd, waitFor } from "./process.mjs";

/** How long a condition may take, in seconds: the processor is emulated. */
export const PATIENCE_SECONDS = 180;

const UNITS = "nbd-proxy.socket nbd-proxy.service nbd-proxy-sockets.service";

/** dpkg's own list of packages: a new one, that knows what ours depends on, as reading all of the machine's takes long. */
const DPKG = "/run/dpkg";

const LISTED = `mkdir -p ${DPKG}/info ${DPKG}/updates ${DPKG}/triggers
  for name in init-system-helpers $(dpkg-deb -f PACKAGE Depends | tr , '\\n' | cut -d '(' -f 1); do
    dpkg-query --status $name
    echo
    for list in /var/lib/dpkg/info/$name.list /var/lib/dpkg/info/$name:*.list; do
      [ ! -e $list ] || cp $list ${DPKG}/info
    done
  done >${DPKG}/status`;

/** nbd-proxy, installed in a guest. */
export class Service {
  /** @param {import("./guest.mjs").Guest} guest @param {import("./package.mjs").Packages} packages */
  constructor(guest, packages) {
    this.guest = guest;
    this.packages = packages;
  }

  /** @param {string} words of dpkg */
  async dpkg(words) {
    await this.guest.run(`dpkg --admindir=${DPKG} ${words}`);
  }

  /** Has the old version installed, wherever it is not. */
  async install() {
    const listed = LISTED.replace("PACKAGE", this.packages.old);
    // What an nbd-proxy on the machine below the guest has made is not this one's.
    const first = `rm -rf /etc/nbd-proxy /var/lib/nbd-proxy; ${listed}`;
    await this.guest.run(`[ -e ${DPKG} ] || { ${first}; }`);
    const isThere = `dpkg --admindir=${DPKG} -s nbd-proxy | grep -q '^Status: install ok installed'`;
    if ((await this.guest.try(isThere)).status !== 0) await this.dpkg(`-i ${this.packages.old}`);
  }

  /** @param {string} words of systemctl, about our units */
  async systemctl(words) {
    return this.guest.run(`systemctl --no-pager ${words}`);
  }

  /** @param {string} unit which is active then, as it says itself */
  async start(unit) {
    await this.guest.run(
      `systemctl start ${unit} || { journalctl --no-pager -o cat -n 20 -u ${unit}; exit 1; }`,
    );
  }

  /** @param {string} unit @param {string} property @returns {Promise<string>} what systemd knows of it */
  async property(unit, property) {
    return this.systemctl(`show --value -p ${property} ${unit}`);
  }

  /**
   * Has a configuration in place until the test ends, and no unit running.
   *
   * @param {import("node:test").TestContext} t
   * @param {Record<string, Record<string, unknown>>} configurations
   */
  async setting(t, configurations) {
    const setting = await Setting.make(t, this.guest, configurations);
    await this.install();
    await this.systemctl(`stop ${UNITS}`);
    await this.guest.run(`cp ${setting.folder}/config.json /etc/nbd-proxy/config.json`);
    // After a purge there are none.
    atEnd(t, () => this.systemctl(`stop ${UNITS}`).catch(() => {}));
    return setting;
  }

  /** @param {string} unit @returns {Promise<string>} the token of the server that runs, which the journal has */
  async token(unit) {
    const id = await this.property(unit, "InvocationID");
    const journal = `journalctl -o cat _SYSTEMD_INVOCATION_ID=${id} + INVOCATION_ID=${id}`;
    const token = () => this.guest.run(`${journal} | sed -n 's/^http.*#token=//p' | grep .`);
    return waitFor("the journal has the address", token, PATIENCE_SECONDS);
  }

  /**
   * Serves an image in the guest, and waits until the configuration has it.
   *
   * @param {Setting} setting @param {string} unit @param {string} image @param {string} name of the configuration
   * @returns the program that serves it, and the device's path
   */
  async share(setting, unit, image, name) {
    const address = `ws://127.0.0.1:8000/nbd/${name}`;
    const token = await this.token(unit);
    const sharing = await setting.start(`nbd-proxy share ${image} ${address} --token ${token}`);
    const [, device] = await sharing.says(/: attached as (\S+)/);
    return { sharing, device };
  }

  /** @param {string} name of a configuration @returns {Promise<any>} its session, once its device is there */
  async attached(name) {
    const session = async () => {
      const { configurations } = JSON.parse(await this.guest.run("nbd-proxy status --json"));
      const { session } = configurations.find((/** @type {any} */ one) => one.name === name);
      return session?.state === "attached" && session;
    };
    return waitFor(`configuration ${name} is attached`, session, PATIENCE_SECONDS);
  }
}
