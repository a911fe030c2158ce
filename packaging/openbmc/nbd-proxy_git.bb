# nbd-proxy in the place of jsnbd: the same path, configuration file and state hook.
SUMMARY = "A disk from a browser tab: NBD over a WebSocket"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

inherit cargo cargo-update-recipe-crates

# Where you keep the sources, such as git.example.com/nbd-proxy, and which revision. `bitbake -c update_crates nbd-proxy`
# writes the list of crates from Cargo.lock into nbd-proxy-crates.inc.
NBD_PROXY_GIT ?= ""
SRC_URI = "git://${NBD_PROXY_GIT};branch=main;protocol=https"
SRCREV ?= "${AUTOREV}"
PV = "0.1+git"
S = "${WORKDIR}/git"
require ${BPN}-crates.inc

# The filter alone: no web server, no TLS, no FUSE. bmcweb is the web server.
CARGO_BUILD_FLAGS += "-p nbd-proxy --no-default-features"
# The profile for flash memory: half as large as "release" makes it.
BUILD_MODE = "--profile small"
BUILD_DIR = "small"

# With "usb-gadget" the disk is shown to the host over USB.
PACKAGECONFIG ??= "usb-gadget"
PACKAGECONFIG[usb-gadget] = ",,,flock"

do_install:append() {
    install -d ${D}${sysconfdir}/nbd-proxy
    install -m 0644 ${S}/packaging/openbmc/config.json ${D}${sysconfdir}/nbd-proxy/config.json
    if ${@bb.utils.contains('PACKAGECONFIG', 'usb-gadget', 'true', 'false', d)}; then
        install -m 0755 ${S}/packaging/hooks/usb-gadget ${D}${sysconfdir}/nbd-proxy/state
    fi
}

# The kernel's driver; neither nbd-client nor libudev.
RRECOMMENDS:${PN} += "kernel-module-nbd"
RPROVIDES:${PN} += "jsnbd"
RREPLACES:${PN} += "jsnbd"
RCONFLICTS:${PN} += "jsnbd"
CONFFILES:${PN} += "${sysconfdir}/nbd-proxy/config.json"
