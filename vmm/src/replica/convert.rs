//! Between the log's words and the board's: events become inputs, outputs become marks.

use bytes::Bytes;
use devices::{ConsolePort, DiskOp, DiskRequest, DiskStatus, Input, Output};
use ftlog::{Event, MarkKind};

use crate::link::{ConsoleLine, DiskAnswer};

/// virtio-blk's status codes (virtio 1.2, 5.2.6), which the log carries.
const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// The event of a disk answer that came from the server; with the data if the log is to have them.
pub fn disk_event(answer: &DiskAnswer, log_data: bool) -> Event {
    let (status, data) = match &answer.result {
        Ok(data) => (
            STATUS_OK,
            (log_data && !data.is_empty()).then(|| data.clone()),
        ),
        Err(errno) if *errno == wire::nbd::Errno::NOTSUP => (STATUS_UNSUPPORTED, None),
        Err(_) => (STATUS_IO_ERROR, None),
    };
    Event::DiskDone {
        id: answer.id,
        status,
        data,
    }
}

/// What the board is given for an event; `read` has the data of a disk read that the log does not
/// carry. `None`: only the clock moves, or the event is the driver's own business.
pub fn input(event: Event, read: Option<Bytes>) -> Option<Input> {
    match event {
        Event::NetReceive(frame) => Some(Input::NetReceive(frame.into())),
        Event::DiskDone { id, status, data } => Some(Input::DiskDone {
            id,
            status: match status {
                STATUS_OK => DiskStatus::Ok,
                STATUS_UNSUPPORTED => DiskStatus::Unsupported,
                _ => DiskStatus::IoError,
            },
            data: data.or(read).map(Vec::from).unwrap_or_default(),
        }),
        Event::ConsoleInput(bytes) => Some(Input::ConsoleInput(bytes.into())),
        Event::SerialInput(bytes) => Some(Input::SerialInput(bytes.into())),
        Event::Timer | Event::Control(_) | Event::GoLive { .. } => None,
    }
}

/// The event of bytes that somebody typed.
pub fn typed(line: ConsoleLine, bytes: Bytes) -> Event {
    match line {
        ConsoleLine::Serial => Event::SerialInput(bytes),
        ConsoleLine::Virtio => Event::ConsoleInput(bytes),
    }
}

/// An output that the Output Rule holds: what its mark says of it, and itself.
#[derive(Debug)]
pub struct Marked {
    pub kind: MarkKind,
    /// What the mark's digest is over.
    pub bytes: Vec<u8>,
    pub output: Output,
}

/// The mark of an output. An error gives it back: a disk read, which the outside cannot see, or a
/// reset, which happens inside the machine.
pub fn mark(output: Output) -> Result<Marked, Output> {
    let (kind, bytes) = match &output {
        Output::NetTransmit(frame) => (MarkKind::Net, frame.clone()),
        Output::Console { bytes, .. } => (MarkKind::Console, bytes.clone()),
        Output::Disk(DiskRequest {
            op: DiskOp::Read, ..
        })
        | Output::Reset => return Err(output),
        Output::Disk(request) => (MarkKind::DiskWrite, disk_bytes(request)),
        Output::PowerOff => (MarkKind::Power, Vec::new()),
        Output::Exit(code) => (MarkKind::Power, code.to_le_bytes().to_vec()),
    };
    Ok(Marked {
        kind,
        bytes,
        output,
    })
}

/// Where a change of the disk goes, which it is, and what it writes.
fn disk_bytes(request: &DiskRequest) -> Vec<u8> {
    let (op, data): (u8, &[u8]) = match &request.op {
        DiskOp::Read => (0, &[]),
        DiskOp::Write(data) => (1, data),
        DiskOp::Flush => (2, &[]),
        DiskOp::Discard => (3, &[]),
        DiskOp::WriteZeroes => (4, &[]),
    };
    [
        &request.sector.to_le_bytes()[..],
        &request.len.to_le_bytes(),
        &[op],
        data,
    ]
    .concat()
}

/// The console a port of the board is.
pub fn line(port: ConsolePort) -> ConsoleLine {
    match port {
        ConsolePort::Serial => ConsoleLine::Serial,
        ConsolePort::Virtio => ConsoleLine::Virtio,
    }
}
