//! What an engine hands out and is given back: owned values, no borrows of guest or engine memory.
//!
//! The type says whether an exit is *consistent*: at a [`Boundary`] the vCPU stands between two
//! instructions, its state may be saved and an asynchronous event may be put in; with a
//! [`PendingRead`] an instruction waits in its middle for a value and nothing else may be done than
//! to answer it. Where a vCPU is [`Exit::Adrift`] it stands between two instructions as well, but at
//! a place that no position names: nothing may be put in there unless the state is sent along.

/// Why `run` returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The vCPU stands between two instructions.
    Boundary(Boundary),
    /// An instruction waits for a value; answer it with [`Entry::Answer`].
    Pending(PendingRead),
    /// The vCPU has run without an exit for longer than the limit of
    /// [`Engine::set_stretch_limit`](crate::Engine::set_stretch_limit), and was stopped somewhere
    /// after its position. Only an engine whose positions are exits does this.
    Adrift,
}

/// A consistent exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// The position asked for is reached; nothing past it has been executed.
    Reached,
    /// A port was written; the instruction (for REP OUTS: the iteration) has retired.
    IoWrite { port: u16, size: u8, value: u32 },
    /// Memory outside RAM was written; the instruction has retired. An instruction that writes more
    /// than 8 bytes there, or straddles, gives several of these exits in a row at one position.
    MmioWrite { addr: u64, size: u8, value: u64 },
    /// HLT has retired; the vCPU waits for an interrupt. If interrupts are off it waits for ever.
    Halt { interrupts_enabled: bool },
    /// An interrupt can be taken now; asked for by `request_window(true)`.
    Window,
    /// Triple fault.
    Shutdown,
}

/// An inconsistent exit: a synchronous read that waits for its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingRead {
    /// IN or one iteration of REP INS. `size` is 1, 2 or 4 bytes.
    Io { port: u16, size: u8 },
    /// A read of memory outside RAM. `size` is 1, 2, 4 or 8 bytes; a wider or unaligned one comes
    /// as several reads.
    Mmio { addr: u64, size: u8 },
}

/// How `run` is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Go on from a boundary.
    Resume,
    /// The value of the pending read (zero-extended).
    Answer(u64),
}
