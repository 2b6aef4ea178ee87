//! A TAP interface behind the switch: the guest is on a real L2 network of this host.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use wire::netport::{MAX_FRAME, MIN_FRAME};

use super::{Sink, Started};
use crate::server::Fabric;

/// Adds an interface to a bridge (`linux/sockios.h`; the libc crate does not have it).
const SIOCBRADDIF: libc::c_ulong = 0x89a2;

/// Why the interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("cannot open /dev/net/tun: {0}; a TAP needs the tun module and CAP_NET_ADMIN")]
    Device(io::Error),
    #[error("cannot use the TAP interface {name:?}: {source}")]
    Attach { name: String, source: io::Error },
    #[error("cannot bring the interface {name:?} up: {source}")]
    Up { name: String, source: io::Error },
    #[error("there is no bridge {bridge:?}, or {name:?} cannot join it: {source}")]
    Bridge {
        name: String,
        bridge: String,
        source: io::Error,
    },
    #[error(transparent)]
    Thread(#[from] io::Error),
}

/// An `ifreq` with the interface's name. The caller has checked its length ([`crate::config`]).
fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is a plain C structure for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (slot, byte) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    request
}

fn ioctl(fd: &impl AsRawFd, number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every number used in this module takes a pointer to an ifreq, which `request` is
    // for the length of the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(request)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Any socket will do for asking the kernel about interfaces.
fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(name: &str) -> Result<File, TapError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    let device = options.open("/dev/net/tun").map_err(TapError::Device)?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    ioctl(&device, libc::TUNSETIFF, &mut request).map_err(|source| TapError::Attach {
        name: name.to_owned(),
        source,
    })?;
    Ok(device)
}

fn bring_up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    ioctl(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    ioctl(socket, libc::SIOCSIFFLAGS, &mut request)
}

fn join_bridge(socket: &OwnedFd, name: &str, bridge: &str) -> io::Result<()> {
    let mut tap = request(name);
    ioctl(socket, libc::SIOCGIFINDEX, &mut tap)?;
    let mut request = request(bridge);
    // SAFETY: SIOCGIFINDEX has just filled this member of the union.
    request.ifr_ifru.ifru_ifindex = unsafe { tap.ifr_ifru.ifru_ifindex };
    ioctl(socket, SIOCBRADDIF, &mut request)
}

struct Tap {
    device: File,
    wake: EventFd,
    stop: AtomicBool,
}

impl Sink for Tap {
    fn send(&self, frame: &Bytes) {
        // Not blocking: an interface that takes no more drops, as any network does.
        if let Err(error) = (&self.device).write(frame) {
            tracing::debug!(%error, "TAP dropped a frame");
        }
    }

    fn ready(&self) {}

    fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        // Fails only at the counter's maximum, when the reader wakes anyway.
        let _ = self.wake.write(1);
    }
}

/// Attaches to the interface `name` and starts the thread that reads it. An interface that is
/// made here goes away with the process.
pub fn start(name: &str, bridge: Option<&str>, fabric: &Arc<Fabric>) -> Result<Started, TapError> {
    let device = attach(name)?;
    let socket = control_socket()?;
    if let Some(bridge) = bridge {
        join_bridge(&socket, name, bridge).map_err(|source| TapError::Bridge {
            name: name.to_owned(),
            bridge: bridge.to_owned(),
            source,
        })?;
    }
    bring_up(&socket, name).map_err(|source| TapError::Up {
        name: name.to_owned(),
        source,
    })?;
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let wake = EventFd::from_value_and_flags(0, flags).map_err(io::Error::from)?;
    let tap = Arc::new(Tap {
        device,
        wake,
        stop: AtomicBool::new(false),
    });
    let (reader, fabric) = (tap.clone(), fabric.clone());
    let thread = std::thread::Builder::new()
        .name("tap".to_owned())
        .spawn(move || {
            if let Err(error) = receive_all(&reader, &fabric) {
                tracing::error!(%error, "the TAP interface is gone; the guest has no network");
            }
        })?;
    Ok(Started {
        sink: tap,
        forwards: Vec::new(),
        threads: vec![thread],
    })
}

fn receive_all(tap: &Tap, fabric: &Fabric) -> io::Result<()> {
    let mut buffer = vec![0; MAX_FRAME];
    while !tap.stop.load(Ordering::SeqCst) {
        let mut fds = [
            PollFd::new(tap.device.as_fd(), PollFlags::POLLIN),
            PollFd::new(tap.wake.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        loop {
            match (&tap.device).read(&mut buffer) {
                Ok(length) if length >= MIN_FRAME => {
                    fabric.inbound(&Bytes::copy_from_slice(&buffer[..length]));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
