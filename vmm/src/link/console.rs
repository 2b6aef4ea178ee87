//! The guest's consoles as people see them: a bounded scroll-back for whoever attaches, a live
//! stream to those who are attached, and a bounded file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::lock;

/// Which of the guest's consoles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ConsoleLine {
    /// The UART, ttyS0.
    Serial,
    /// The virtio console, hvc0.
    Virtio,
}

/// Bytes written to the file; a guest must not be able to fill its host's disk.
const FILE_MAX: u64 = 16 << 20;
/// Chunks that may wait for a slow watcher before it is dropped.
const WATCHER_MAX: usize = 1024;

#[derive(Clone)]
pub struct Console(Arc<Mutex<State>>);

struct State {
    scrollback: VecDeque<u8>,
    /// Bytes kept for whoever attaches later.
    history: usize,
    watchers: Vec<Sender<Bytes>>,
    file: Option<File>,
    written: u64,
}

impl Console {
    /// A console that keeps `history` bytes for whoever attaches later, and also writes what the
    /// guest says to `file`.
    pub fn new(file: Option<&Path>, history: usize) -> io::Result<Self> {
        let file = file.map(File::create).transpose()?;
        let state = State {
            scrollback: VecDeque::new(),
            history,
            watchers: Vec::new(),
            file,
            written: 0,
        };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// What the guest said.
    pub fn put(&self, bytes: &[u8]) {
        let mut state = lock(&self.0);
        state.scrollback.extend(bytes);
        let excess = state.scrollback.len().saturating_sub(state.history);
        state.scrollback.drain(..excess);
        state.write_file(bytes);
        let chunk = Bytes::copy_from_slice(bytes);
        state
            .watchers
            .retain(|watcher| match watcher.try_send(chunk.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            });
    }

    /// What was said so far, as much of it as is kept, and everything from now on.
    pub fn watch(&self) -> (Vec<u8>, Receiver<Bytes>) {
        let mut state = lock(&self.0);
        let (sender, receiver) = crossbeam_channel::bounded(WATCHER_MAX);
        state.watchers.push(sender);
        (state.scrollback.iter().copied().collect(), receiver)
    }
}

impl State {
    fn write_file(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        if let Err(why) = file.write_all(bytes) {
            tracing::warn!(%why, "the console file cannot be written; going on without it");
            self.file = None;
            return;
        }
        self.written += bytes.len() as u64;
        if self.written > FILE_MAX {
            let _ = file.write_all(b"\n[the console file is full]\n");
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_as_much_as_it_is_told() -> io::Result<()> {
        let console = Console::new(None, 4)?;
        console.put(b"ab");
        console.put(b"cdef");
        let (kept, said) = console.watch();
        assert_eq!(kept, b"cdef");
        console.put(b"g");
        assert_eq!(said.try_recv().as_deref(), Ok(&b"g"[..]));
        Ok(())
    }
}
