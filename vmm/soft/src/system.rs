//! System instructions.

use crate::decode::Decoding;
use crate::op::Handler;

/// The handler of a system instruction, or None if it is not one.
pub fn decode(_d: &mut Decoding) -> Option<Handler> {
    None
}
