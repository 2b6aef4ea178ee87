//! What clients did and what they were told: one event per operation, kept in
//! a file as JSON lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// An operation on one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// `INCR key`
    Incr,
    /// `GET key`
    Get,
    /// `SET key value`; values are unique in a history.
    Set(String),
    /// `APPEND key token`; tokens are unique in a history and end with `;`.
    Append(String),
}

impl Op {
    /// Whether the operation can change the key.
    pub fn is_write(&self) -> bool {
        *self != Op::Get
    }
}

/// What the server answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// `+OK`
    Ok,
    /// No such key.
    Nil,
    /// A number: the counter's new value, or the new length in bytes.
    Integer(i64),
    /// The key's value.
    Text(String),
    /// The server refused; Redis does nothing then.
    Error(String),
}

/// One operation of one client. Times are nanoseconds since the load began,
/// all from one clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Which client, from 0.
    pub client: u32,
    /// Which TCP connection of it, from 0: one more per reconnect. Operations
    /// of one connection take effect in the order in which they are listed.
    pub connection: u32,
    /// The key.
    pub key: String,
    /// What was asked.
    pub op: Op,
    /// When, at the earliest, the request left the client.
    pub invoke_ns: u64,
    /// When the answer was there; none if the connection broke before it.
    pub return_ns: Option<u64>,
    /// The answer; there exactly if `return_ns` is.
    pub answer: Option<Answer>,
}

/// A wait of one client for an answer, in nanoseconds since the load began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Which client.
    pub client: u32,
    /// When the wait began: the request, or the answer before it if that came
    /// later (in a pipeline).
    pub from_ns: u64,
    /// When the answer came.
    pub to_ns: u64,
}

impl Wait {
    /// Its length.
    pub fn ns(&self) -> u64 {
        self.to_ns - self.from_ns
    }
}

/// Why a history could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("read the history: {0}")]
    Io(#[from] io::Error),
    /// A line is not an event.
    #[error("line {line} of the history is not an event: {problem}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// The events of a run, those of one connection in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The events.
    pub events: Vec<Event>,
}

impl History {
    /// Writes one JSON object a line.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for event in &self.events {
            serde_json::to_writer(&mut file, event)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }

    /// Reads what [`History::write`] wrote.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let mut events = Vec::new();
        for (number, line) in BufReader::new(File::open(path)?).lines().enumerate() {
            let bad = |problem: String| ReadError::Line {
                line: number + 1,
                problem,
            };
            let event: Event = serde_json::from_str(&line?).map_err(|e| bad(e.to_string()))?;
            let complete = event.return_ns.is_some() == event.answer.is_some()
                && event.return_ns.is_none_or(|t| t >= event.invoke_ns);
            if !complete {
                return Err(bad("its times or its answer do not fit".into()));
            }
            events.push(event);
        }
        Ok(Self { events })
    }

    /// Every wait for an answer, client by client, in order.
    pub fn waits(&self) -> Vec<Wait> {
        let clients = self.events.iter().map(|e| e.client + 1).max().unwrap_or(0);
        let mut last = vec![0; clients as usize];
        let mut waits = Vec::new();
        for event in &self.events {
            let Some(to_ns) = event.return_ns else {
                continue;
            };
            let last = &mut last[event.client as usize];
            let from_ns = event.invoke_ns.max(*last).min(to_ns);
            *last = to_ns.max(*last);
            waits.push(Wait {
                client: event.client,
                from_ns,
                to_ns,
            });
        }
        waits
    }

    /// The longest wait that ended after `after_ns`: with the time of a kill,
    /// the interruption that clients saw and when it was over.
    pub fn longest_wait(&self, after_ns: u64) -> Option<Wait> {
        let waits = self.waits();
        waits
            .into_iter()
            .filter(|w| w.to_ns > after_ns)
            .max_by_key(Wait::ns)
    }
}
