//! JSON messages, one per line, with a bound on the length of a line.

use std::io::{self, BufRead, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a line could not be read as a message.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("the line is longer than {max} bytes")]
    TooLong { max: usize },
    #[error("the connection ended in the middle of a line")]
    Truncated,
    #[error("not a valid message: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads one line of at most `max` bytes (without its newline). `None`: the peer closed the
/// connection between two lines.
pub fn read_line(reader: &mut impl BufRead, max: usize) -> Result<Option<Vec<u8>>, LineError> {
    let mut line = Vec::new();
    loop {
        let chunk = match reader.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        if chunk.is_empty() {
            return if line.is_empty() {
                Ok(None)
            } else {
                Err(LineError::Truncated)
            };
        }
        let newline = chunk.iter().position(|&byte| byte == b'\n');
        let take = newline.unwrap_or(chunk.len());
        if line.len() + take > max {
            return Err(LineError::TooLong { max });
        }
        line.extend_from_slice(&chunk[..take]);
        reader.consume(take + usize::from(newline.is_some()));
        if newline.is_some() {
            return Ok(Some(line));
        }
    }
}

/// Reads one message; `None` as for [`read_line`].
pub fn read_message<T: DeserializeOwned>(
    reader: &mut impl BufRead,
    max: usize,
) -> Result<Option<T>, LineError> {
    match read_line(reader, max)? {
        Some(line) => Ok(Some(serde_json::from_slice(&line)?)),
        None => Ok(None),
    }
}

/// Writes one message and its newline in a single write.
pub fn write_message<T: Serialize>(writer: &mut impl Write, message: &T) -> Result<(), LineError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writer.write_all(&line)?;
    writer.flush()?;
    Ok(())
}
