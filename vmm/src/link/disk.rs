//! The link to the shared disk.
//!
//! Requests are kept until they are answered; when the disk server was restarted, or the replica
//! won a new view, all that are not answered are sent again on the new connection: reads and block
//! writes may be done twice (the design's rule 7). A request is in flight once: it is sent again
//! only when the connection on which it was sent is closed, and answers are taken only from the
//! present one, or an old copy of a write could land on top of a newer write.
//!
//! Two locks, always taken in this order: `wire`, held while a request is put on the socket, which
//! may block; and `open`, held for moments. The thread that takes answers needs only the latter, so
//! that a full socket in one direction never stops the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

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
pub struct DiskLink(Arc<Link>);

struct Link {
    addr: String,
    /// The sending half of the present connection; `None` while there is none.
    wire: Mutex<Option<NbdSender>>,
    open: Mutex<Open>,
    /// The export has changed, or the link is closed.
    changed: Condvar,
    closed: Closed,
}

struct Open {
    export: ExportName,
    /// Issued and not answered, by id.
    requests: BTreeMap<u64, Arc<DiskRequest>>,
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
        let open = Open {
            export,
            requests: BTreeMap::new(),
            closer: Some(sender.closer()?),
        };
        let link = Self(Arc::new(Link {
            addr: addr.to_owned(),
            wire: Mutex::new(Some(sender)),
            open: Mutex::new(open),
            changed: Condvar::new(),
            closed: Closed::default(),
        }));
        let keeper = link.clone();
        spawn("disk", move || keeper.0.keep(receiver, &arrivals)).map_err(NbdError::from)?;
        Ok((link, size))
    }

    /// Issues a request; its answer comes as an arrival. Never fails: while the server is away the
    /// request waits.
    pub fn submit(&self, request: DiskRequest) {
        let request = Arc::new(request);
        let mut wire = lock(&self.0.wire);
        lock(&self.0.open)
            .requests
            .insert(request.id, Arc::clone(&request));
        if let Some(sender) = wire.as_mut()
            && let Err(why) = send(sender, &request)
        {
            tracing::debug!(%why, "disk request waits for a new connection");
            *wire = None;
            self.0.hang_up();
        }
    }

    /// Leaves the present connection for one that belongs to another view.
    pub fn reopen(&self, export: ExportName) {
        lock(&self.0.open).export = export;
        self.0.hang_up();
        self.0.changed.notify_all();
    }

    /// Requests issued and not answered.
    pub fn in_flight(&self) -> usize {
        lock(&self.0.open).requests.len()
    }

    /// Ends the link; nothing is sent or received any more.
    pub fn close(&self) {
        self.0.closed.set();
        self.0.hang_up();
        self.0.changed.notify_all();
    }
}

impl Link {
    /// Closes the connection, which ends a send or a receive that blocks on it.
    fn hang_up(&self) {
        if let Some(closer) = lock(&self.open).closer.take() {
            closer.close();
        }
    }

    /// The link's thread: takes answers, and connects again.
    fn keep(&self, mut receiver: NbdReceiver, arrivals: &Sender<Arrival>) {
        loop {
            let why = self.receive(&mut receiver, arrivals);
            self.hang_up();
            *lock(&self.wire) = None;
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
            // The view is over, or the server ends: neither success nor failure of the request.
            if matches!(reply.result, Err(Errno::SHUTDOWN)) {
                return NbdError::Refused(Errno::SHUTDOWN);
            }
            {
                let mut open = lock(&self.open);
                // Without its closer this connection has been left.
                if open.closer.is_none() {
                    return NbdError::Closed;
                }
                open.requests.remove(&reply.handle);
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
            let export = lock(&self.open).export.clone();
            match NbdClient::connect(&self.addr, &export, CONNECT_TIMEOUT) {
                Ok(client) => {
                    if let Some(receiver) = self.take_over(client, &export) {
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

    /// Makes `client` the connection and sends what is open. `None`: it broke again, or the export
    /// has changed meanwhile.
    fn take_over(&self, client: NbdClient, export: &ExportName) -> Option<NbdReceiver> {
        let (mut sender, receiver) = client.split();
        let closer = sender.closer().ok()?;
        let mut wire = lock(&self.wire);
        let requests: Vec<_> = {
            let mut open = lock(&self.open);
            if open.export != *export || self.closed.is_set() {
                return None;
            }
            open.closer = Some(closer);
            open.requests.values().cloned().collect()
        };
        for request in requests {
            send(&mut sender, &request).ok()?;
        }
        *wire = Some(sender);
        Some(receiver)
    }

    /// The view of `export` is over. The vCPU's thread is told; if this replica itself is live in
    /// the next view, the link gets another export.
    fn fenced(&self, export: &ExportName, reason: String, arrivals: &Sender<Arrival>) {
        let fenced = Arrival::Fenced {
            by: "the disk server",
            view: export.view.as_ref().map_or(0, |tag| tag.view),
            reason,
        };
        // Without a vCPU nobody needs to know.
        let _ = arrivals.send(fenced);
        let mut open = lock(&self.open);
        while !self.closed.is_set() && open.export == *export {
            open = self
                .changed
                .wait(open)
                .unwrap_or_else(PoisonError::into_inner);
        }
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
