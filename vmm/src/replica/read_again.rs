//! Disk reads that a backup executes itself (`disk-reads=backup`).
//!
//! The read is sent when the entry of its completion is due, no earlier: until then the primary
//! holds back every write that overlaps it, so the disk has what the primary found.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use devices::DiskRequest;
use wire::nbd::{ExportName, NbdClient, NbdError};

use super::protocol::Protocol;
use super::replay::Reads;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
const SECTOR: u64 = 512;

pub struct ReadAgain {
    addr: String,
    export: ExportName,
    protocol: Protocol,
    client: Option<NbdClient>,
    issued: BTreeMap<u64, (u64, u32)>,
}

impl ReadAgain {
    /// Reads `export` at `addr`, under the view that the protocol is in.
    pub fn new(addr: String, export: ExportName, protocol: Protocol) -> Self {
        Self {
            addr,
            export,
            protocol,
            client: None,
            issued: BTreeMap::new(),
        }
    }

    fn read(&mut self, offset: u64, length: u32) -> Result<Bytes, NbdError> {
        let client = match &mut self.client {
            Some(client) => client,
            None => {
                let mut export = self.export.clone();
                if let Some(tag) = &mut export.view {
                    tag.view = self.protocol.view().number;
                }
                self.client
                    .insert(NbdClient::connect(&self.addr, &export, CONNECT_TIMEOUT)?)
            }
        };
        client.read(offset, length)
    }
}

impl Reads for ReadAgain {
    fn issued(&mut self, request: &DiskRequest) {
        self.issued
            .insert(request.id, (request.sector * SECTOR, request.len));
        // A reset of the guest leaves requests behind that never complete here.
        while self.issued.len() > 4096 {
            self.issued.pop_first();
        }
    }

    fn data(&mut self, id: u64) -> Result<Bytes, String> {
        let (offset, length) = self
            .issued
            .remove(&id)
            .ok_or_else(|| format!("disk read {id} was never issued"))?;
        let mut told = false;
        loop {
            match self.read(offset, length) {
                Ok(data) => return Ok(data),
                Err(why) if self.protocol.halted().is_some() => return Err(why.to_string()),
                // Between two views the old connection is refused and the new one not yet there.
                Err(why) => {
                    if !told {
                        tracing::warn!(%why, "disk read on the backup; trying again");
                        told = true;
                    }
                    self.client = None;
                    std::thread::sleep(RECONNECT_PAUSE);
                }
            }
        }
    }
}
