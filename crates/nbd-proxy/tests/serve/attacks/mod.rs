//! Attacks, one test each: what a hostile page or a hostile client of a socket device can try, and that it harms nobody
//! else. Each test names the defence that it fails without.

mod arena;
mod auth;
mod client;
mod clients;
mod frames;
mod handshakes;
mod links;
mod page;
mod places;
mod replies;
mod rights;
mod target;
mod texts;
