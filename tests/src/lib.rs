//! Tests of the whole: the command line against other builders and against its own promises.
//!
//! This library holds what the test programs share: [`case`], the conformance cases as data.

pub mod case;
pub mod evidence;
mod files;
pub mod served;
