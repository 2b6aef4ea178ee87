//! Differential test of a CPU engine against the host's CPU.
//!
//! Random instruction sequences with random state run natively, in a sandboxed child process, and
//! on the engine, as 64-bit user code at the same linear addresses; every register, flag, byte of
//! memory and exception is compared.

pub mod case;
pub mod catalog;
pub mod compare;
mod freedom;
pub mod generate;
pub mod guest;
pub mod native;
mod operands;
mod run;
pub mod sequence;
mod values;

pub use run::{Failure, Options, Summary, Tester};
