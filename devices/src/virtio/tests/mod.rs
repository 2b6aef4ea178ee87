//! The devices behind their transport, as a driver sees them.

mod blk;
mod hostile;
mod net;
mod other;
mod transport;
