//! Sections of a saved state: framing, bounds, checksums.
//!
//! A section is a header of 20 bytes (kind u32, payload length u64, XXH3 of the payload u64, little
//! endian) and its payload. The end section holds the number of sections before it and the XXH3 of
//! all their headers, so a lost or exchanged section is found as well as a changed one.

use std::io::{self, Read, Write};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{LoadError, MAX_ABOUT, MAX_STATE, VERSION, chunk};

const MAGIC: [u8; 8] = *b"LOCKSTEP";
const HEADER: usize = 20;
const END_LEN: usize = 16;

/// What a section holds. The numbers are in files: do not reuse them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    About = 1,
    State = 2,
    Memory = 3,
    End = 4,
}

impl Kind {
    fn from_number(number: u32) -> Result<Self, LoadError> {
        [Self::About, Self::State, Self::Memory, Self::End]
            .into_iter()
            .find(|kind| *kind as u32 == number)
            .ok_or_else(|| {
                LoadError::Malformed(format!("it has a section of unknown kind {number}"))
            })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::About => "about",
            Self::State => "state",
            Self::Memory => "memory",
            Self::End => "end",
        }
    }

    pub(super) fn max_len(self) -> u64 {
        match self {
            Self::About => MAX_ABOUT,
            Self::State => MAX_STATE,
            Self::Memory => chunk::MAX_LEN,
            Self::End => END_LEN as u64,
        }
    }
}

/// Writes sections to a stream.
pub(super) struct Writer<'a> {
    out: &'a mut dyn Write,
    sections: u64,
    headers: Xxh3,
}

impl<'a> Writer<'a> {
    pub(super) fn begin(out: &'a mut dyn Write) -> io::Result<Self> {
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        Ok(Self {
            out,
            sections: 0,
            headers: Xxh3::new(),
        })
    }

    pub(super) fn section(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        self.summed(kind, payload, xxh3_64(payload))
    }

    /// A section whose checksum is known already.
    pub(super) fn summed(&mut self, kind: Kind, payload: &[u8], sum: u64) -> io::Result<()> {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&(kind as u32).to_le_bytes());
        header[4..12].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        header[12..].copy_from_slice(&sum.to_le_bytes());
        self.headers.update(&header);
        self.sections += 1;
        self.out.write_all(&header)?;
        self.out.write_all(payload)
    }

    pub(super) fn end(mut self) -> io::Result<()> {
        let mut payload = [0; END_LEN];
        payload[..8].copy_from_slice(&self.sections.to_le_bytes());
        payload[8..].copy_from_slice(&self.headers.digest().to_le_bytes());
        self.section(Kind::End, &payload)?;
        self.out.flush()
    }
}

/// Reads sections from a stream that is not trusted.
pub(super) struct Reader<'a> {
    input: &'a mut dyn Read,
    sections: u64,
    headers: Xxh3,
}

impl<'a> Reader<'a> {
    pub(super) fn begin(input: &'a mut dyn Read) -> Result<Self, LoadError> {
        let mut magic = [0; MAGIC.len()];
        match input.read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => {}
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(LoadError::Io(e)),
            _ => return Err(LoadError::NotASavedState),
        }
        let mut version = [0; 4];
        read_exact(input, &mut version, "header")?;
        match u32::from_le_bytes(version) {
            VERSION => Ok(Self {
                input,
                sections: 0,
                headers: Xxh3::new(),
            }),
            found => Err(LoadError::Version { found }),
        }
    }

    /// The payload of the next section, which must be of this kind.
    pub(super) fn expect(&mut self, kind: Kind) -> Result<Vec<u8>, LoadError> {
        let (found, payload) = self.next()?;
        if found == kind {
            return Ok(payload);
        }
        Err(LoadError::Malformed(format!(
            "where its {} section should be there is a {} section",
            kind.name(),
            found.name()
        )))
    }

    /// The next section, its checksum checked; for the end section also what it says about all.
    pub(super) fn next(&mut self) -> Result<(Kind, Vec<u8>), LoadError> {
        let mut header = [0; HEADER];
        read_exact(self.input, &mut header, "section header")?;
        let [a, b, c, d, rest @ ..] = header;
        let kind = Kind::from_number(u32::from_le_bytes([a, b, c, d]))?;
        let (len, sum) = (word(&rest, 0), word(&rest, 8));
        if len > kind.max_len() {
            return Err(LoadError::Malformed(format!(
                "its {} section claims to have {len} bytes",
                kind.name()
            )));
        }
        // Grows with what arrives: a length that lies costs no memory.
        let mut payload = Vec::new();
        let got = self.input.take(len).read_to_end(&mut payload);
        if got.map_err(LoadError::Io)? as u64 != len {
            let within = kind.name();
            return Err(LoadError::Truncated { within });
        }
        if xxh3_64(&payload) != sum {
            let what = kind.name();
            return Err(LoadError::Checksum { what });
        }
        if kind == Kind::End {
            self.check_end(&payload)?;
        } else {
            self.sections += 1;
            self.headers.update(&header);
        }
        Ok((kind, payload))
    }

    fn check_end(&self, payload: &[u8]) -> Result<(), LoadError> {
        let whole = payload.len() == END_LEN
            && word(payload, 0) == self.sections
            && word(payload, 8) == self.headers.digest();
        if whole {
            return Ok(());
        }
        Err(LoadError::Malformed(
            "its end does not match its sections; some are missing or exchanged".into(),
        ))
    }
}

/// The little-endian word at an offset that the caller knows to be inside.
fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn read_exact(
    input: &mut dyn Read,
    bytes: &mut [u8],
    within: &'static str,
) -> Result<(), LoadError> {
    input.read_exact(bytes).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => LoadError::Truncated { within },
        _ => LoadError::Io(e),
    })
}
