//! The integer instructions, a file for each family.

mod arith;
mod atomic;
mod bits;
mod branch;
mod cond;
mod decimal;
mod flagops;
mod mov;
mod muldiv;
pub mod pick;
mod shift;
mod stack;
mod string;

use crate::chain::Link;
use crate::decode::Decoding;

/// The code of an integer instruction, or None if it is not one.
pub fn decode(d: &mut Decoding) -> Option<Link> {
    mov::decode(d)
        .or_else(|| arith::decode(d))
        .or_else(|| branch::decode(d))
        .or_else(|| stack::decode(d))
        .or_else(|| shift::decode(d))
        .or_else(|| cond::decode(d))
        .or_else(|| bits::decode(d))
        .or_else(|| string::decode(d))
        .or_else(|| muldiv::decode(d))
        .or_else(|| atomic::decode(d))
        .or_else(|| flagops::decode(d))
        .or_else(|| decimal::decode(d))
}
