//! The virtio disk (virtio 1.2, 5.2): one queue, requests that finish when the log says so.
//!
//! A request's data leave guest memory when the guest issues it and enter guest memory only in
//! [`Blk::complete`]'s round of work, both with the vCPU stopped.

mod request;

use request::{Answer, Request, parse};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
};
use vm_memory::GuestMemory;

use super::queue::{Queue, QueueError, Segment, copy_in};
use crate::events::{DeliverError, DiskOp, DiskRequest, DiskStatus, Output, Outputs};

pub const FEATURES: u64 = 1 << VIRTIO_BLK_F_SIZE_MAX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
pub const QUEUE_SIZES: [u16; 1] = [256];
const SECTOR: u64 = 512;
/// The longest segment and the most segments of a request that a driver should send.
const SEGMENT_MAX: u32 = 128 << 10;
const SEGMENTS_MAX: u32 = 126;
/// The most data of one read or write; longer ones fail.
const REQUEST_MAX: u64 = 4 << 20;
/// Data of requests on their way at which new ones wait in the queue: what a guest can make the
/// host keep for it, in bytes.
const IN_FLIGHT_MAX: u64 = 32 << 20;
/// The most sectors of one discard (2 GiB), and of one write of zeros (32 MiB, because the disk
/// behind may have to write them).
const DISCARD_SECTORS_MAX: u32 = 1 << 22;
const ZERO_SECTORS_MAX: u32 = 1 << 16;
const ID_LEN: usize = 20;

/// A request whose completion has not come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InFlight {
    request: DiskRequest,
    answer: Answer,
    /// It was output. (If not, it waits for orphans.)
    issued: bool,
}

/// A request whose completion has come and is not yet in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Finished {
    answer: Answer,
    status: DiskStatus,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

/// The disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blk {
    sectors: u64,
    id: [u8; ID_LEN],
    next_request: u64,
    /// Oldest first.
    in_flight: Vec<InFlight>,
    /// Requests that were on their way when the driver reset the device. Nobody waits for them,
    /// but a new request must not overtake them: an old write could land on top of a newer one.
    orphans: Vec<DiskRequest>,
    finished: Vec<Finished>,
}

impl Blk {
    pub fn new(sectors: u64, serial: &str) -> Self {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Self {
            sectors,
            id,
            next_request: 1,
            in_flight: Vec::new(),
            orphans: Vec::new(),
            finished: Vec::new(),
        }
    }

    pub fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        put(8, &SEGMENT_MAX.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        // Discard: most sectors, most segments, alignment. Zeros: most sectors, most segments.
        put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &1u32.to_le_bytes());
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        config
    }

    pub fn reset(&mut self) {
        let issued = self.in_flight.drain(..).filter(|flight| flight.issued);
        self.orphans.extend(issued.map(|flight| flight.request));
        self.finished.clear();
    }

    /// Requests that were output and have no completion, oldest first.
    pub fn pending(&self) -> impl Iterator<Item = &DiskRequest> {
        let issued = self.in_flight.iter().filter(|flight| flight.issued);
        self.orphans
            .iter()
            .chain(issued.map(|flight| &flight.request))
    }

    /// A completion from the log. The next round of work puts it into guest memory.
    pub fn complete(
        &mut self,
        id: u64,
        status: DiskStatus,
        data: Vec<u8>,
        outputs: &mut Outputs,
    ) -> Result<(), DeliverError> {
        if let Some(index) = self.orphans.iter().position(|request| request.id == id) {
            check_data(&self.orphans[index], status, &data)?;
            self.orphans.remove(index);
            if self.orphans.is_empty() {
                self.issue_waiting(outputs);
            }
            return Ok(());
        }
        let index = self
            .in_flight
            .iter()
            .position(|flight| flight.issued && flight.request.id == id)
            .ok_or(DeliverError::UnknownRequest(id))?;
        check_data(&self.in_flight[index].request, status, &data)?;
        let InFlight { answer, .. } = self.in_flight.remove(index);
        self.finished.push(Finished {
            answer,
            status,
            data,
        });
        Ok(())
    }

    fn issue_waiting(&mut self, outputs: &mut Outputs) {
        for flight in self.in_flight.iter_mut().filter(|flight| !flight.issued) {
            flight.issued = true;
            outputs.push(Output::Disk(flight.request.clone()));
        }
    }

    /// Answers finished requests, then takes new ones.
    pub fn process<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        mem: &M,
        outputs: &mut Outputs,
    ) -> Result<(), QueueError> {
        for done in std::mem::take(&mut self.finished) {
            respond(queue, mem, &done.answer, done.status, &done.data)?;
        }
        while self.bytes_in_flight() < IN_FLIGHT_MAX {
            let Some(chain) = queue.pop(mem)? else { break };
            // A driver that offers a chain again before it was returned.
            if self
                .in_flight
                .iter()
                .any(|flight| flight.answer.head == chain.head)
            {
                return Err(QueueError::Request(
                    "disk request that is already on its way",
                ));
            }
            match parse(mem, &chain, self.sectors, &self.id)? {
                Request::Disk {
                    op,
                    sector,
                    len,
                    answer,
                } => {
                    self.start(
                        DiskRequest {
                            id: self.next_request,
                            op,
                            sector,
                            len,
                        },
                        answer,
                        outputs,
                    );
                }
                Request::Now {
                    status,
                    data,
                    answer,
                } => {
                    respond(queue, mem, &answer, status, &data)?;
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, request: DiskRequest, answer: Answer, outputs: &mut Outputs) {
        self.next_request += 1;
        let issued = self.orphans.is_empty();
        if issued {
            outputs.push(Output::Disk(request.clone()));
        }
        self.in_flight.push(InFlight {
            request,
            answer,
            issued,
        });
    }

    fn bytes_in_flight(&self) -> u64 {
        let data = |request: &DiskRequest| match request.op {
            DiskOp::Read | DiskOp::Write(_) => u64::from(request.len),
            _ => 0,
        };
        self.in_flight
            .iter()
            .map(|flight| data(&flight.request))
            .sum()
    }
}

/// A read that worked brings its data, anything else brings none.
fn check_data(request: &DiskRequest, status: DiskStatus, data: &[u8]) -> Result<(), DeliverError> {
    let want = match (&request.op, status) {
        (DiskOp::Read, DiskStatus::Ok) => request.len as usize,
        _ => 0,
    };
    if data.len() == want {
        Ok(())
    } else {
        Err(DeliverError::DataLength {
            id: request.id,
            want,
            got: data.len(),
        })
    }
}

/// Puts data and status into guest memory and returns the chain.
fn respond<M: GuestMemory>(
    queue: &mut Queue,
    mem: &M,
    answer: &Answer,
    status: DiskStatus,
    data: &[u8],
) -> Result<(), QueueError> {
    copy_in(mem, &answer.data, data)?;
    let code = match status {
        DiskStatus::Ok => VIRTIO_BLK_S_OK,
        DiskStatus::IoError => VIRTIO_BLK_S_IOERR,
        DiskStatus::Unsupported => VIRTIO_BLK_S_UNSUPP,
    };
    copy_in(
        mem,
        &[Segment {
            addr: answer.status,
            len: 1,
        }],
        &[code as u8],
    )?;
    // Bytes written from the buffer's start on; a failed read leaves a gap before the status.
    let whole = data.len() as u64 == super::queue::total(&answer.data);
    queue.push_used(
        mem,
        answer.head,
        if whole { data.len() as u32 + 1 } else { 0 },
    )
}
