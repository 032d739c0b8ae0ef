//! Dockerfiles in, statements, instructions, words and verdicts out: the behaviour of the crate as data.

mod expand;
mod ignore;
mod instructions;
mod limits;
mod render;
mod syntax;
mod total;
