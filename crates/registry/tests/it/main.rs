//! The client against a scripted registry: what it sends, and what it makes of what comes back.

#![allow(clippy::unwrap_used)] // What fails here fails the test.

mod auth;
mod download;
mod place;
mod pull;
mod push;
mod real;
mod scene;
