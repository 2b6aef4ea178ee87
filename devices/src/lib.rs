//! The board of a Lockstep machine: every device model as a deterministic state machine.
//!
//! Nothing here reads a clock, a socket or a random number. A [`Board`] is a function of the calls
//! made on it: the guest's port and MMIO accesses, [`Board::advance`] with virtual time, and
//! [`Board::deliver`] with logged [`Input`]s. Two boards that saw the same calls are equal and gave
//! the same [`Output`]s; that is what lets a backup replay a primary.
//!
//! Time is `now`, virtual nanoseconds since power-on; it never decreases (a smaller value than the
//! board has seen counts as the largest seen). Guest memory is touched only inside these calls, so
//! only while the vCPU is stopped. A board can be saved and restored with `serde` between any two
//! calls.
//!
//! One run of a guest, from the caller's side:
//!
//! 1. `next_deadline()` before each run of the vCPU (every call may change it); when it comes,
//!    `advance(now)`.
//! 2. When `interrupt_pending()` and the vCPU takes interrupts: `advance(now)`, then
//!    `acknowledge_interrupt()` for the vector.
//! 3. Accesses outside RAM: `io_*` and `mmio_*`. They advance time by themselves.
//! 4. Inputs, at positions that the log fixes: `deliver`.
//! 5. After any of these: `take_outputs()`.

mod board;
mod events;
mod i8042;
mod irq;
mod pci;
mod pic;
mod pit;
mod rtc;
#[cfg(test)]
mod testkit;
mod uart;
mod virtio;

pub use board::{Board, BoardSpec, Counters};
pub use events::{
    ConsolePort, DeliverError, DiskOp, DiskRequest, DiskStatus, INPUT_CHUNK, Input, MAX_FRAME,
    MIN_FRAME, Output,
};
pub use pci::WINDOW as MMIO_WINDOW;
pub use virtio::net::NetCounters;
