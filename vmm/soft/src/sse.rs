//! Instructions.

use crate::decode::Decoding;
use crate::op::Handler;

/// The handler of one of these instructions, or None if it is not one.
pub fn decode(_d: &mut Decoding) -> Option<Handler> {
    None
}
