//! Variable-length integers (LEB128, as in DWARF section 7.6) and a checked reader over a body.

use bytes::{Buf, Bytes};

use super::error::Problem;

pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Maps a wrapping difference to a number that is small when the difference is near zero.
pub fn zigzag(difference: u64) -> u64 {
    let signed = difference as i64;
    ((signed << 1) ^ (signed >> 63)) as u64
}

pub fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

/// Reads a body from front to back. Every read says what it reads, for the error.
pub struct Reader {
    body: Bytes,
}

impl Reader {
    pub fn new(body: Bytes) -> Self {
        Self { body }
    }

    pub fn left(&self) -> usize {
        self.body.len()
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, Problem> {
        self.need(1, what)?;
        Ok(self.body.get_u8())
    }

    pub fn u16(&mut self, what: &'static str) -> Result<u16, Problem> {
        self.need(2, what)?;
        Ok(self.body.get_u16_le())
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, Problem> {
        self.need(4, what)?;
        Ok(self.body.get_u32_le())
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, Problem> {
        self.need(8, what)?;
        Ok(self.body.get_u64_le())
    }

    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Problem> {
        self.need(N, what)?;
        let mut array = [0; N];
        self.body.copy_to_slice(&mut array);
        Ok(array)
    }

    pub fn varint(&mut self, what: &'static str) -> Result<u64, Problem> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Problem::VarintOverflow { what })
    }

    /// A length and that many bytes, which are shared with the frame, not copied.
    pub fn data(&mut self, what: &'static str, max: usize) -> Result<Bytes, Problem> {
        let len = self.varint(what)?;
        if len > max as u64 {
            return Err(Problem::DataTooLong { what, len, max });
        }
        self.need(len as usize, what)?;
        Ok(self.body.split_to(len as usize))
    }

    pub fn text(&mut self, what: &'static str, max: usize) -> Result<String, Problem> {
        let data = self.data(what, max)?;
        String::from_utf8(data.to_vec()).map_err(|_| Problem::Utf8 { what })
    }

    /// The body ends here.
    pub fn end(&self, what: &'static str) -> Result<(), Problem> {
        match self.left() {
            0 => Ok(()),
            extra => Err(Problem::Trailing { what, extra }),
        }
    }

    fn need(&self, bytes: usize, what: &'static str) -> Result<(), Problem> {
        if self.left() < bytes {
            Err(Problem::Ends { what })
        } else {
            Ok(())
        }
    }
}

pub fn put_data(out: &mut Vec<u8>, data: &[u8]) {
    put(out, data.len() as u64);
    out.extend_from_slice(data);
}
