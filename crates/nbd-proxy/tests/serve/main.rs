//! `serve`, `share`, `status` and `eject` as programs: over HTTP, WebSockets, sockets and signals.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod attacks;
mod audit;
mod certificates;
mod disk;
mod events;
mod harness;
mod http;
mod https;
mod keep;
mod killed;
mod limits;
mod links;
mod logins;
mod page;
mod passwd;
mod power;
mod restart;
mod service;
mod sessions;
mod share;
mod start;
mod tls;
