//! A client of the view register, for which no answer means "unknown".

use std::io::BufReader;
use std::net::TcpStream;
use std::time::Duration;

use super::{MAX_LINE, Record, ReplicaId, Request, Response, ServerInfo, SnapshotInfo, View, VmId};
use crate::{line, net};

/// Why a question has no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// No answer came, or none that could be read. The request may or may not have been carried
    /// out: ask again, conclude nothing.
    #[error("no answer from the view register at {addr}: {reason}")]
    Unknown { addr: String, reason: String },
    /// The register answered that it did not do it.
    #[error("the view register at {addr} refused: {reason}")]
    Refused { addr: String, reason: String },
}

impl RegisterError {
    /// Whether asking again may help and nothing may be concluded.
    pub fn is_unknown(&self) -> bool {
        matches!(self, RegisterError::Unknown { .. })
    }
}

/// The answer to a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimAnswer {
    Won(View),
    Lost(View),
}

/// Asks the register; connects when needed, and again after any failure.
pub struct RegisterClient {
    addr: String,
    timeout: Duration,
    stream: Option<BufReader<TcpStream>>,
}

impl RegisterClient {
    /// `addr` is `HOST:PORT`; `timeout` bounds the connection, and each wait for an answer.
    /// Nothing is sent yet.
    pub fn new(addr: impl Into<String>, timeout: Duration) -> RegisterClient {
        RegisterClient {
            addr: addr.into(),
            timeout,
            stream: None,
        }
    }

    /// Changes the bound for the calls that follow.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    pub fn get(&mut self, vm: VmId) -> Result<Option<Record>, RegisterError> {
        match self.call(&Request::Get { vm })? {
            Response::Record { record } => Ok(record),
            other => Err(self.unexpected(&other)),
        }
    }

    /// See [`Request::Create`]. The answer's view is the one to use.
    pub fn create(
        &mut self,
        vm: VmId,
        primary: ReplicaId,
        backup: Option<ReplicaId>,
        disks: &[String],
        reset: bool,
    ) -> Result<Record, RegisterError> {
        let disks = disks.to_vec();
        self.record(&Request::Create {
            vm,
            primary,
            backup,
            disks,
            reset,
        })
    }

    /// See [`Request::Claim`].
    pub fn claim(
        &mut self,
        vm: VmId,
        from_view: u64,
        claimant: ReplicaId,
    ) -> Result<ClaimAnswer, RegisterError> {
        match self.call(&Request::Claim {
            vm,
            from_view,
            claimant,
        })? {
            Response::Won { view } => Ok(ClaimAnswer::Won(view)),
            Response::Lost { view } => Ok(ClaimAnswer::Lost(view)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// See [`Request::Off`].
    pub fn off(&mut self, vm: VmId, view: u64) -> Result<Record, RegisterError> {
        self.record(&Request::Off { vm, view })
    }

    /// See [`Request::Snapshot`]. `timeout` bounds this call alone: a copy takes as long as the
    /// image is large.
    pub fn snapshot(
        &mut self,
        export: &str,
        path: &str,
        timeout: Duration,
    ) -> Result<SnapshotInfo, RegisterError> {
        let usual = std::mem::replace(&mut self.timeout, timeout);
        let request = Request::Snapshot {
            export: export.to_owned(),
            path: path.to_owned(),
        };
        let answer = self.call(&request);
        self.timeout = usual;
        match answer? {
            Response::Snapshot(info) => Ok(info),
            other => Err(self.unexpected(&other)),
        }
    }

    pub fn info(&mut self) -> Result<ServerInfo, RegisterError> {
        match self.call(&Request::Info)? {
            Response::Info(info) => Ok(info),
            other => Err(self.unexpected(&other)),
        }
    }

    fn record(&mut self, request: &Request) -> Result<Record, RegisterError> {
        match self.call(request)? {
            Response::Record {
                record: Some(record),
            } => Ok(record),
            other => Err(self.unexpected(&other)),
        }
    }

    fn unexpected(&mut self, response: &Response) -> RegisterError {
        self.stream = None;
        self.unknown(format!("it answered something else: {response:?}"))
    }

    fn unknown(&self, reason: String) -> RegisterError {
        RegisterError::Unknown {
            addr: self.addr.clone(),
            reason,
        }
    }

    /// One request and its answer. Whatever goes wrong drops the connection, so that a late
    /// answer can never be taken for the answer to a later question.
    fn call(&mut self, request: &Request) -> Result<Response, RegisterError> {
        match self.try_call(request) {
            Ok(Response::Refused { reason }) => Err(RegisterError::Refused {
                addr: self.addr.clone(),
                reason,
            }),
            Ok(Response::Unavailable { reason }) => Err(self.unknown(reason)),
            Ok(response) => Ok(response),
            Err(reason) => {
                self.stream = None;
                Err(self.unknown(reason))
            }
        }
    }

    fn try_call(&mut self, request: &Request) -> Result<Response, String> {
        let mut reader = match self.stream.take() {
            Some(reader) => reader,
            None => {
                let stream =
                    net::connect(&self.addr, self.timeout).map_err(|error| error.to_string())?;
                BufReader::new(stream)
            }
        };
        let limits = reader
            .get_ref()
            .set_read_timeout(Some(self.timeout))
            .and(reader.get_ref().set_write_timeout(Some(self.timeout)));
        limits.map_err(|error| error.to_string())?;
        line::write_message(reader.get_mut(), request).map_err(|error| error.to_string())?;
        match line::read_message(&mut reader, MAX_LINE) {
            Ok(Some(response)) => {
                self.stream = Some(reader);
                Ok(response)
            }
            Ok(None) => Err("it closed the connection".to_owned()),
            Err(line::LineError::Io(error)) if is_timeout(&error) => {
                Err(format!("none within {} ms", self.timeout.as_millis()))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    )
}
