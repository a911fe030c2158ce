//! `nbd-proxy`: gives a machine a disk whose image is served by a browser tab.

use std::process::ExitCode;

fn main() -> ExitCode {
    nbd_proxy::main()
}
