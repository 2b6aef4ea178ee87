//! What a descriptor chain asks of the disk.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestMemory;

use super::super::queue::{Chain, QueueError, Segment, copy_out, total};
use super::{DISCARD_SECTORS_MAX, REQUEST_MAX, SECTOR, ZERO_SECTORS_MAX};
use crate::events::{DiskOp, DiskStatus};

/// `virtio_blk_req` before its data: type, reserved, sector.
const HEADER: u64 = 16;
/// `virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const RANGE: usize = 16;

/// Where the answer to a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The chain to return.
    pub head: u16,
    /// Where data go.
    pub data: Vec<Segment>,
    /// Where the status byte goes.
    pub status: u64,
}

/// A request that was understood.
pub enum Request {
    /// The disk has to do something.
    Disk {
        op: DiskOp,
        sector: u64,
        len: u32,
        answer: Answer,
    },
    /// It can be answered at once.
    Now {
        status: DiskStatus,
        data: Vec<u8>,
        answer: Answer,
    },
}

/// Reads a chain. An error is a chain that cannot even be answered; a request that makes no sense
/// is answered with a status.
pub fn parse<M: GuestMemory>(
    mem: &M,
    chain: &Chain,
    sectors: u64,
    id: &[u8],
) -> Result<Request, QueueError> {
    let answer = answer_of(chain)?;
    let out_len = total(&chain.readable);
    if out_len < HEADER {
        return Err(QueueError::Request("disk request without a whole header"));
    }
    if out_len > HEADER + REQUEST_MAX {
        return Ok(Request::Now {
            status: DiskStatus::IoError,
            data: Vec::new(),
            answer,
        });
    }
    let mut out = copy_out(mem, &chain.readable)?;
    let payload = out.split_off(HEADER as usize);
    // type: le32, reserved: le32, sector: le64.
    let kind = le(&out, 0, 4) as u32;
    let sector = le(&out, 8, 8);
    let in_len = total(&answer.data);
    let status = match kind {
        VIRTIO_BLK_T_IN => match data_len(sector, in_len, sectors) {
            Some(len) if payload.is_empty() => {
                return Ok(Request::Disk {
                    op: DiskOp::Read,
                    sector,
                    len,
                    answer,
                });
            }
            _ => DiskStatus::IoError,
        },
        VIRTIO_BLK_T_OUT => match data_len(sector, payload.len() as u64, sectors) {
            Some(len) => {
                return Ok(Request::Disk {
                    op: DiskOp::Write(payload),
                    sector,
                    len,
                    answer,
                });
            }
            None => DiskStatus::IoError,
        },
        VIRTIO_BLK_T_FLUSH => {
            return Ok(Request::Disk {
                op: DiskOp::Flush,
                sector: 0,
                len: 0,
                answer,
            });
        }
        VIRTIO_BLK_T_GET_ID => {
            // The buffer may be shorter than the string (virtio 1.2, 5.2.6.1: it has 20 bytes).
            let data = id[..id.len().min(in_len as usize)].to_vec();
            return Ok(Request::Now {
                status: DiskStatus::Ok,
                data,
                answer,
            });
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => match range(kind, &payload, sectors) {
            Ok((op, sector, len)) => {
                return Ok(Request::Disk {
                    op,
                    sector,
                    len,
                    answer,
                });
            }
            Err(status) => status,
        },
        _ => DiskStatus::Unsupported,
    };
    Ok(Request::Now {
        status,
        data: Vec::new(),
        answer,
    })
}

/// Splits the status byte off the end of what the device may write.
fn answer_of(chain: &Chain) -> Result<Answer, QueueError> {
    let mut data = chain.writable.clone();
    let Some(last) = data.last_mut() else {
        return Err(QueueError::Request(
            "disk request without room for a status",
        ));
    };
    // Segments are never empty, and their last byte is in memory.
    last.len -= 1;
    let status = last.addr + u64::from(last.len);
    if last.len == 0 {
        data.pop();
    }
    Ok(Answer {
        head: chain.head,
        data,
        status,
    })
}

/// The length of a transfer if it is whole sectors inside the disk.
fn data_len(sector: u64, len: u64, sectors: u64) -> Option<u32> {
    let fits = len > 0
        && len <= REQUEST_MAX
        && len.is_multiple_of(SECTOR)
        && sector
            .checked_add(len / SECTOR)
            .is_some_and(|end| end <= sectors);
    if fits { u32::try_from(len).ok() } else { None }
}

/// The one range of a discard or a write of zeros.
fn range(kind: u32, payload: &[u8], sectors: u64) -> Result<(DiskOp, u64, u32), DiskStatus> {
    if payload.len() != RANGE {
        return Err(DiskStatus::IoError);
    }
    let (sector, count, flags) = (
        le(payload, 0, 8),
        le(payload, 8, 4) as u32,
        le(payload, 12, 4) as u32,
    );
    let (op, most, flags_allowed) = if kind == VIRTIO_BLK_T_DISCARD {
        (DiskOp::Discard, DISCARD_SECTORS_MAX, 0)
    } else {
        (
            DiskOp::WriteZeroes,
            ZERO_SECTORS_MAX,
            VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        )
    };
    if flags & !flags_allowed != 0 {
        return Err(DiskStatus::Unsupported);
    }
    let inside = sector
        .checked_add(u64::from(count))
        .is_some_and(|end| end <= sectors);
    if count == 0 || count > most || !inside {
        return Err(DiskStatus::IoError);
    }
    // At most 2^22 sectors: fits.
    Ok((op, sector, count * SECTOR as u32))
}

/// A little-endian number of up to 8 bytes; the caller has checked that they are there.
fn le(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len]
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
