// A machine with the session's disk in its CD-ROM drive: QEMU, without KVM.

import { background } from "./process.mjs";

/**
 * Switches it on. What its serial port says is the program's standard output.
 *
 * @param {import("node:test").TestContext} t
 * @param {{device: string}} session with a socket
 */
export function powerOn(t, session) {
  const disk = `file=nbd+unix:///?socket=${session.device},format=raw,if=none,id=disk,readonly=on`;
  const machine = ["-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-smp", "2"];
  const ports = ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"];
  const drive = ["-drive", disk, "-device", "ide-cd,drive=disk"];
  return background(t, "qemu-system-x86_64", [...machine, ...ports, ...drive]);
}
