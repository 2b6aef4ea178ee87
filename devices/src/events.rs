//! What crosses the board's edge: inputs that the log carries in, outputs that wait for their mark.

use serde::{Deserialize, Serialize};

/// An asynchronous input. The caller logs it with its position, then hands it to
/// [`Board::deliver`](crate::Board::deliver) on primary and backup alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// An Ethernet frame without FCS (14 to [`MAX_FRAME`] bytes).
    NetReceive(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A disk request has finished.
    DiskDone {
        /// [`DiskRequest::id`] of the request.
        id: u64,
        /// How it ended.
        status: DiskStatus,
        /// For a read that ended [`DiskStatus::Ok`]: exactly [`DiskRequest::len`] bytes. Otherwise
        /// empty.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Bytes typed at the virtio console (hvc0).
    ConsoleInput(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Bytes typed at the serial port (ttyS0).
    SerialInput(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// Something that the guest did and the outside may see. Outputs wait for the log (the Output
/// Rule) and are dropped on a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// An Ethernet frame without FCS.
    NetTransmit(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A request to the disk; answer it with [`Input::DiskDone`].
    Disk(DiskRequest),
    /// Bytes written to a console. Consecutive bytes of one port are one output until taken.
    Console {
        /// Which console.
        port: ConsolePort,
        /// At least one byte.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The guest asked for a machine reset (keyboard controller, port 92h, port CF9h). The caller
    /// resets the CPU and calls [`Board::reset`](crate::Board::reset), or ends the machine.
    Reset,
    /// The guest switched the power off.
    PowerOff,
    /// The guest wrote this value to the exit port 0F4h. QEMU's isa-debug-exit makes exit status
    /// `value * 2 + 1` of it.
    Exit(u32),
}

/// A console of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsolePort {
    /// The 16550 at 3F8h (ttyS0).
    Serial,
    /// The virtio console (hvc0).
    Virtio,
}

/// One request to the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// Strictly increasing over the life of a machine, resets included; starts at 1.
    pub id: u64,
    /// What to do.
    pub op: DiskOp,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    /// Length in bytes, a multiple of 512 (0 for a flush). The range lies inside the disk.
    pub len: u32,
}

/// What a disk request does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskOp {
    /// Read `len` bytes.
    Read,
    /// Write these bytes (`len` of them), copied out of guest memory when the guest issued them.
    Write(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Put all writes that completed before this request was issued on stable storage.
    Flush,
    /// The contents of the range are no longer needed.
    Discard,
    /// The range reads as zeros from now on.
    WriteZeroes,
}

/// How a disk request ended (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskStatus {
    /// Done.
    Ok,
    /// The disk reported an error.
    IoError,
    /// The disk does not do this operation.
    Unsupported,
}

/// The longest Ethernet frame that the board takes or gives, in bytes, without FCS: a 64 KiB IP
/// packet with a VLAN tag.
pub const MAX_FRAME: usize = 65_535 + 18;

/// The shortest Ethernet frame: its header. Padding to 60 bytes is the wire's business.
pub const MIN_FRAME: usize = 14;

/// Console input of up to this many bytes at a time is never dropped when the board says that it
/// can take some ([`Board::console_can_receive`](crate::Board::console_can_receive)).
pub const INPUT_CHUNK: usize = 4096;

/// Why an input was refused. The board is unchanged; as inputs come from the log, a refusal on a
/// backup means that the log does not belong to this machine's state.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeliverError {
    /// The board was built without that device.
    #[error("the machine has no {0}; leave out that input or add the device to the machine")]
    NoDevice(&'static str),
    /// A network frame of an impossible length.
    #[error("network frame of {0} bytes; frames have {MIN_FRAME} to {MAX_FRAME}")]
    FrameLength(usize),
    /// A completion for a request that is not pending.
    #[error("completion of disk request {0}, which is not pending")]
    UnknownRequest(u64),
    /// A completion whose data does not fit the request.
    #[error("disk request {id} completed with {got} bytes of data; {want} were expected")]
    DataLength {
        /// The request.
        id: u64,
        /// Bytes expected.
        want: usize,
        /// Bytes given.
        got: usize,
    },
}

/// Outputs in the guest's order, not yet taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs(Vec<Output>);

impl Outputs {
    pub fn push(&mut self, output: Output) {
        self.0.push(output);
    }

    /// Appends console bytes, to the last output if that is the same console's.
    pub fn console(&mut self, port: ConsolePort, new: &[u8]) {
        if let Some(Output::Console { port: last, bytes }) = self.0.last_mut()
            && *last == port
        {
            bytes.extend_from_slice(new);
        } else if !new.is_empty() {
            self.push(Output::Console {
                port,
                bytes: new.to_vec(),
            });
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.0)
    }
}
