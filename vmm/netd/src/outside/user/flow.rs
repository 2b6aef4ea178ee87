//! One client connection: a socket of the host and a connection of the stack, byte for byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};
use socket2::SockRef;

/// A connection attempt that the guest has not answered for so long is begun anew, since a
/// guest that boots would otherwise be asked again only after the stack's back-off.
const PATIENCE: Duration = Duration::from_millis(3500);

pub struct Flow {
    pub stream: TcpStream,
    pub handle: SocketHandle,
    pub guest_port: u16,
    /// The port on the stack's side.
    pub local_port: u16,
    pub begun: Instant,
    /// The client has sent everything.
    client_done: bool,
    /// The guest has sent everything.
    guest_done: bool,
    /// The client has been told so.
    told_client: bool,
    /// The client's socket took less than there was.
    stalled: bool,
    /// The client is gone.
    broken: bool,
}

impl Flow {
    pub fn new(
        stream: TcpStream,
        handle: SocketHandle,
        guest_port: u16,
        local_port: u16,
        now: Instant,
    ) -> Flow {
        Flow {
            stream,
            handle,
            guest_port,
            local_port,
            begun: now,
            client_done: false,
            guest_done: false,
            told_client: false,
            stalled: false,
            broken: false,
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// What to wait for on the client's socket. `None`: nothing, not even an error. (Once both
    /// sides have said that they are done the socket reports a hang-up all the time.)
    pub fn interest(&self, socket: &Socket<'_>) -> Option<PollFlags> {
        let mut flags = PollFlags::empty();
        if !self.client_done && socket.can_send() {
            flags |= PollFlags::POLLIN;
        }
        if self.stalled && socket.can_recv() {
            flags |= PollFlags::POLLOUT;
        }
        (!flags.is_empty() || !self.told_client).then_some(flags)
    }

    /// The client's socket has an error or was hung up on. After the guest's end was passed on,
    /// a hang-up is only the client's end, which reading tells.
    pub fn client_failed(&mut self) {
        self.broken |= !self.told_client;
    }

    /// Moves what can be moved in both directions.
    pub fn pump(&mut self, socket: &mut Socket<'_>) {
        self.pump_to_guest(socket);
        self.pump_to_client(socket);
        if self.broken && socket.state() != State::Closed {
            socket.abort();
        }
    }

    fn pump_to_guest(&mut self, socket: &mut Socket<'_>) {
        let mut more = true;
        while more && !self.client_done && !self.broken && socket.can_send() {
            let stream = &mut self.stream;
            let read = socket.send(|buffer| match stream.read(buffer) {
                Ok(length) => (length, Ok(length)),
                Err(error) => (0, Err(error.kind())),
            });
            match read {
                Ok(Ok(0)) => {
                    self.client_done = true;
                    socket.close();
                }
                Ok(Ok(_)) | Ok(Err(ErrorKind::Interrupted)) => {}
                Ok(Err(ErrorKind::WouldBlock)) => more = false,
                Ok(Err(_)) => self.broken = true,
                // The stack's side has been closed meanwhile.
                Err(_) => more = false,
            }
        }
    }

    fn pump_to_client(&mut self, socket: &mut Socket<'_>) {
        self.stalled = false;
        while socket.can_recv() && !self.stalled && !self.broken {
            let stream = &mut self.stream;
            let written = socket.recv(|data| match stream.write(data) {
                Ok(length) => (length, Ok(())),
                Err(error) => (0, Err(error.kind())),
            });
            match written {
                Ok(Ok(())) | Ok(Err(ErrorKind::Interrupted)) => {}
                Ok(Err(ErrorKind::WouldBlock)) => self.stalled = true,
                Ok(Err(_)) | Err(_) => self.broken = true,
            }
        }
        use State::{CloseWait, Closing, LastAck, TimeWait};
        self.guest_done |= matches!(socket.state(), CloseWait | Closing | LastAck | TimeWait);
        if self.guest_done && !socket.can_recv() && !self.told_client {
            self.told_client = true;
            // A client that is gone is noticed by the next read.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Whether the guest has not answered the connection for too long.
    pub fn unanswered(&self, socket: &Socket<'_>, now: Instant) -> bool {
        socket.state() == State::SynSent && now.duration_since(self.begun) >= PATIENCE
    }

    /// Whether nothing is left to do, and the client's socket may be closed. A connection that
    /// the guest has reset is reset towards the client too.
    pub fn finished(&self, socket: &Socket<'_>) -> bool {
        match socket.state() {
            // An aborted connection still has to say so to the guest.
            State::Closed if socket.remote_endpoint().is_some() => false,
            State::Closed if self.broken => true,
            State::Closed if !self.guest_done => {
                let reset = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
                if let Err(error) = reset {
                    tracing::debug!(%error, "cannot reset a client's connection");
                }
                true
            }
            State::Closed | State::TimeWait => !socket.can_recv(),
            _ => false,
        }
    }
}
