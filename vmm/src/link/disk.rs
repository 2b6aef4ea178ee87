//! The link to the shared disk.
//!
//! Requests are kept until they are answered; when the disk server was restarted, or the replica
//! went live in a new view, all that are not answered are sent again: reads and block writes may be
//! done twice (the design's rule 7). A server that says that the view is over fences the replica.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crossbeam_channel::Sender;
use devices::{DiskOp, DiskRequest};
use wire::nbd::{
    Errno, ExportName, HandshakeError, NbdClient, NbdCloser, NbdError, NbdReceiver, NbdSender,
    Operation,
};

use super::{Arrival, CONNECT_TIMEOUT, Closed, DiskAnswer, RECONNECT_PAUSE, lock, spawn};

/// Bytes in a sector of virtio-blk (virtio 1.2, 5.2.6).
const SECTOR: u64 = 512;

#[derive(Clone)]
pub struct DiskLink {
    state: Arc<Mutex<State>>,
    closed: Closed,
}

struct State {
    addr: String,
    export: ExportName,
    /// Issued and not answered, by id.
    open: BTreeMap<u64, DiskRequest>,
    sender: Option<NbdSender>,
    closer: Option<NbdCloser>,
}

impl DiskLink {
    /// Connects, and keeps connected, to `export` at `addr`. The first connection must succeed.
    /// Gives the size of the disk in bytes too.
    pub fn open(
        addr: &str,
        export: ExportName,
        arrivals: Sender<Arrival>,
    ) -> Result<(Self, u64), NbdError> {
        let client = NbdClient::connect(addr, &export, CONNECT_TIMEOUT)?;
        let size = client.info().size;
        let (sender, receiver) = client.split();
        let state = State {
            addr: addr.to_owned(),
            export,
            open: BTreeMap::new(),
            closer: Some(sender.closer()?),
            sender: Some(sender),
        };
        let link = Self {
            state: Arc::new(Mutex::new(state)),
            closed: Closed::default(),
        };
        let keeper = link.clone();
        spawn("disk", move || keeper.keep(receiver, &arrivals))
            .map_err(|error| NbdError::from(std::io::Error::other(error)))?;
        Ok((link, size))
    }

    /// Issues a request; its answer comes as an arrival. Never fails: while the server is away the
    /// request waits.
    pub fn submit(&self, request: DiskRequest) {
        let mut state = lock(&self.state);
        if let Some(sender) = &mut state.sender
            && let Err(why) = send(sender, &request)
        {
            tracing::debug!(%why, "disk request waits for a new connection");
            state.disconnect();
        }
        state.open.insert(request.id, request);
    }

    /// Leaves the present connection for one that belongs to another view.
    pub fn reopen(&self, export: ExportName) {
        let mut state = lock(&self.state);
        state.export = export;
        state.disconnect();
    }

    /// Requests issued and not answered.
    pub fn in_flight(&self) -> usize {
        lock(&self.state).open.len()
    }

    /// Ends the link; nothing is sent or received any more.
    pub fn close(&self) {
        self.closed.set();
        lock(&self.state).disconnect();
    }

    /// The link's thread: takes answers, and connects again.
    fn keep(&self, mut receiver: NbdReceiver, arrivals: &Sender<Arrival>) {
        loop {
            let why = self.receive(&mut receiver, arrivals);
            if self.closed.is_set() {
                return;
            }
            tracing::info!(%why, "the disk connection ended; connecting again");
            match self.reconnect(arrivals) {
                Some(next) => receiver = next,
                None => return,
            }
        }
    }

    /// Takes answers until the connection ends.
    fn receive(&self, receiver: &mut NbdReceiver, arrivals: &Sender<Arrival>) -> NbdError {
        loop {
            let reply = match receiver.recv() {
                Ok(reply) => reply,
                Err(why) => return why,
            };
            if matches!(reply.result, Err(Errno::SHUTDOWN)) {
                return NbdError::Refused(Errno::SHUTDOWN);
            }
            if lock(&self.state).open.remove(&reply.handle).is_none() {
                continue; // answered already, before a reconnection
            }
            let answer = DiskAnswer {
                id: reply.handle,
                result: reply.result,
            };
            if arrivals.send(Arrival::Disk(answer)).is_err() {
                self.closed.set();
            }
        }
    }

    /// Connects again, for as long as it takes, and sends everything that is not answered.
    fn reconnect(&self, arrivals: &Sender<Arrival>) -> Option<NbdReceiver> {
        let mut told = false;
        while !self.closed.is_set() {
            let (addr, export) = {
                let state = lock(&self.state);
                (state.addr.clone(), state.export.clone())
            };
            match NbdClient::connect(&addr, &export, CONNECT_TIMEOUT) {
                Ok(client) => {
                    let mut state = lock(&self.state);
                    // Otherwise the replica went live meanwhile: this connection is of an old view.
                    if state.export == export
                        && let Some(receiver) = state.take_over(client)
                    {
                        return Some(receiver);
                    }
                }
                Err(NbdError::Handshake {
                    source: HandshakeError::Fenced(reason),
                    ..
                }) => self.fenced(&export, reason, arrivals),
                Err(why) => {
                    if !told {
                        tracing::warn!(%why, "the disk server is away; trying again");
                        told = true;
                    }
                    std::thread::sleep(RECONNECT_PAUSE);
                }
            }
        }
        None
    }

    /// The view of `export` is over. The vCPU's thread is told; if this replica itself is live in
    /// the next view, the link gets another export.
    fn fenced(&self, export: &ExportName, reason: String, arrivals: &Sender<Arrival>) {
        let fenced = Arrival::Fenced {
            by: "the disk server",
            reason,
        };
        let _ = arrivals.send(fenced);
        while !self.closed.is_set() && lock(&self.state).export == *export {
            std::thread::sleep(RECONNECT_PAUSE / 10);
        }
    }
}

impl State {
    fn disconnect(&mut self) {
        self.sender = None;
        if let Some(closer) = self.closer.take() {
            closer.close();
        }
    }

    /// Makes `client` the connection and sends what is open. `None`: it broke again.
    fn take_over(&mut self, client: NbdClient) -> Option<NbdReceiver> {
        let (mut sender, receiver) = client.split();
        self.closer = Some(sender.closer().ok()?);
        for request in self.open.values() {
            send(&mut sender, request).ok()?;
        }
        self.sender = Some(sender);
        Some(receiver)
    }
}

fn send(sender: &mut NbdSender, request: &DiskRequest) -> Result<(), NbdError> {
    let offset = request.sector.saturating_mul(SECTOR);
    let length = request.len;
    let operation = match &request.op {
        DiskOp::Read => Operation::Read { offset, length },
        DiskOp::Write(data) => Operation::Write {
            offset,
            data,
            fua: false,
        },
        DiskOp::Flush => Operation::Flush,
        DiskOp::Discard => Operation::Trim { offset, length },
        DiskOp::WriteZeroes => Operation::WriteZeroes {
            offset,
            length,
            fua: false,
        },
    };
    sender.send(request.id, operation)
}
