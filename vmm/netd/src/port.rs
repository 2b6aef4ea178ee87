//! A replica's connection: one thread reads it, one writes it.

use std::io::{BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use wire::netport::{
    FromSwitch, Hello, Message, ToSwitch, WireError, control_bytes, frame_header, read_message,
};

use crate::server::Fabric;
use crate::switch::{Next, PortId, Refusal};

/// How long a replica may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of frames that are written at a time.
const BATCH: usize = 256 << 10;

/// Why a replica's connection ended other than by its closing it.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("the connection began with something other than a hello")]
    NoHello,
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl From<std::io::Error> for PortError {
    fn from(error: std::io::Error) -> PortError {
        PortError::Wire(WireError::Io(error))
    }
}

/// Serves one replica until its connection ends.
pub fn serve(stream: TcpStream, fabric: &Arc<Fabric>) -> Result<(), PortError> {
    stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
    let mut reader = BufReader::with_capacity(128 << 10, stream.try_clone()?);
    let Some(hello) = read_hello(&mut reader)? else {
        return Ok(());
    };
    let id = match fabric.change(|switch| switch.connect(&hello)) {
        Ok(id) => id,
        Err(refusal) => return Err(refuse(&stream, refusal)),
    };
    tracing::info!(vm = %hello.vm, replica = %hello.replica, view = hello.view, live = hello.live, "replica connected");
    stream.set_read_timeout(None)?;
    let ended = std::thread::scope(|scope| {
        let writer = stream.try_clone()?;
        std::thread::Builder::new()
            .name("port-writer".to_owned())
            .spawn_scoped(scope, || {
                let writer = writer;
                if let Err(error) = write_all(&writer, fabric, id) {
                    tracing::debug!(%error, "port writer ended");
                }
                // Ends the reader too, if the writer was first.
                let _ = writer.shutdown(Shutdown::Both);
            })?;
        let ended = read_all(&mut reader, fabric, id);
        if let Err(PortError::Refused(refusal)) = &ended {
            refuse(&stream, refusal.clone());
        }
        fabric.change(|switch| switch.disconnect(id));
        ended
    });
    tracing::info!(vm = %hello.vm, replica = %hello.replica, "replica disconnected");
    ended
}

fn read_hello(reader: &mut BufReader<TcpStream>) -> Result<Option<Hello>, PortError> {
    match read_message(reader)? {
        Some(Message::Control(ToSwitch::Hello(hello))) => Ok(Some(hello)),
        Some(_) => Err(PortError::NoHello),
        None => Ok(None),
    }
}

/// Tells the replica why, and hangs up.
fn refuse(mut stream: &TcpStream, refusal: Refusal) -> PortError {
    let words = FromSwitch::Refused {
        reason: refusal.to_string(),
    };
    if let Ok(bytes) = control_bytes(&words) {
        // A replica that is gone does not read its refusal.
        let _ = stream.write_all(&bytes);
    }
    let _ = stream.shutdown(Shutdown::Both);
    PortError::Refused(refusal)
}

fn read_all(
    reader: &mut BufReader<TcpStream>,
    fabric: &Fabric,
    id: PortId,
) -> Result<(), PortError> {
    loop {
        match read_message(reader) {
            Ok(Some(Message::Frame(frame))) => fabric.from_replica(id, &frame),
            Ok(Some(Message::Control(ToSwitch::GoLive { view }))) => {
                fabric.change(|switch| switch.go_live(id, view));
            }
            Ok(Some(Message::Control(ToSwitch::Consumed { frames }))) => {
                fabric.change(|switch| switch.consumed(id, frames))?;
            }
            Ok(Some(Message::Control(ToSwitch::Hello(_)))) => {
                return Err(Refusal::SecondHello.into());
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn write_all(mut stream: &TcpStream, fabric: &Fabric, id: PortId) -> Result<(), PortError> {
    while let Some(next) = fabric.wait_for(id, BATCH) {
        match next {
            Next::Control(message) => stream.write_all(&control_bytes(&message)?)?,
            Next::Frames(frames) => {
                let mut batch = Vec::with_capacity(frames.iter().map(|f| f.len() + 4).sum());
                for frame in &frames {
                    batch.extend_from_slice(&frame_header(frame)?);
                    batch.extend_from_slice(frame);
                }
                stream.write_all(&batch)?;
            }
            Next::Nothing => {}
        }
    }
    Ok(())
}
