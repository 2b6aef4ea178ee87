//! The integer instructions.

mod mov;

use crate::decode::Decoding;
use crate::op::Handler;

/// The handler of an integer instruction, or None if it is not one.
pub fn decode(d: &mut Decoding) -> Option<Handler> {
    mov::decode(d)
}
