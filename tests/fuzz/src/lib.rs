//! Fuzzing on the stable toolchain: hostile input for everything that faces a guest, a peer, a file
//! or a user.
//!
//! A [`Target`] is a function of bytes that must not panic, abort, hang or take memory without
//! bound, whatever the bytes are; most also check a property, such as that what was decoded is
//! encoded and decoded to the same. Nothing in a target knows how its bytes were made, so the same
//! functions can be called from libFuzzer or AFL. Here they are made from valid samples that the
//! crates' own encoders built, by mutation ([`mutate`]), as a function of a seed and the case's
//! number alone.
//!
//! | module | topic |
//! |---|---|
//! | [`targets`] | the targets and their samples |
//! | [`mutate`] | how a sample becomes a case |
//! | [`input`] | bytes as a program: what a target takes its choices from |
//! | [`findings`] | panics in any thread, slow and hanging cases, memory |
//! | [`run`] | the loop over the cases of one target, in a process of its own |

pub mod findings;
pub mod input;
pub mod mutate;
pub mod run;
pub mod scratch;
pub mod targets;

/// One thing to fuzz.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// Takes one input. Panics if something is wrong.
    pub run: fn(&[u8]),
    /// Valid inputs that mutation begins from.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// Cases of a short run: about half a second of a slow machine.
    pub cases: u64,
}
