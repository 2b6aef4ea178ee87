//! The loop of the user-mode stack: one thread, `poll(2)` over everything.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::iface::{self, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as StackTime;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use super::device::Device;
use super::flow::Flow;
use super::{Listener, Queue, dhcp};
use crate::config::Subnet;
use crate::server::Fabric;

/// The gateway's MAC (locally administered).
const MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]);
/// Client connections, at most; one more is closed at once.
const MAX_FLOWS: usize = 512;
/// Bytes of each connection's buffers, each direction: bounds what is in flight to the guest.
const BUFFER: usize = 256 << 10;
/// Ports on the stack's side.
const PORTS: std::ops::Range<u16> = 32_768..61_000;
/// The loop looks around at least so often.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

pub struct Stack {
    listeners: Vec<Listener>,
    subnet: Subnet,
    queue: Arc<Queue>,
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    flows: BTreeMap<u64, Flow>,
    next_flow: u64,
    next_port: u16,
    began: Instant,
}

impl Stack {
    pub fn new(
        listeners: Vec<Listener>,
        subnet: Subnet,
        queue: Arc<Queue>,
        fabric: Arc<Fabric>,
    ) -> Stack {
        let mut device = Device::new(fabric, queue.clone(), dhcp::Server::new(subnet, MAC));
        // Sequence numbers and ports should differ from those of an earlier process, whose
        // connections the guest may still know.
        let seed = RandomState::new().hash_one(std::process::id());
        let mut config = iface::Config::new(HardwareAddress::Ethernet(MAC));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, StackTime::ZERO);
        interface.update_ip_addrs(|addrs| {
            let own = IpCidr::new(IpAddress::Ipv4(subnet.gateway), subnet.prefix);
            // The list is empty and has room for one.
            let _ = addrs.push(own);
        });
        let ports = u64::from(PORTS.end - PORTS.start);
        Stack {
            listeners,
            subnet,
            queue,
            device,
            interface,
            sockets: SocketSet::new(Vec::new()),
            flows: BTreeMap::new(),
            next_flow: 0,
            next_port: PORTS.start + (seed % ports) as u16,
            began: Instant::now(),
        }
    }

    pub fn run(mut self) {
        while !self.queue.stop.load(Ordering::SeqCst) {
            self.device.fill();
            self.accept();
            self.exchange();
            self.wait();
        }
    }

    fn now(&self) -> StackTime {
        StackTime::from_micros(self.began.elapsed().as_micros() as i64)
    }

    /// Lets the stack and the clients' sockets give each other what they have, until neither
    /// has more.
    fn exchange(&mut self) {
        self.pump();
        loop {
            let now = self.now();
            let changed = self
                .interface
                .poll(now, &mut self.device, &mut self.sockets);
            self.pump();
            let more = self.device.fill();
            if changed == iface::PollResult::None && !more {
                break;
            }
        }
        self.retire();
    }

    fn pump(&mut self) {
        for flow in self.flows.values_mut() {
            flow.pump(self.sockets.get_mut::<Socket<'_>>(flow.handle));
        }
    }

    /// Drops what is finished and begins anew what the guest has not answered.
    fn retire(&mut self) {
        let now = Instant::now();
        let (mut finished, mut unanswered) = (Vec::new(), Vec::new());
        for (id, flow) in &self.flows {
            let socket = self.sockets.get::<Socket<'_>>(flow.handle);
            if flow.finished(socket) {
                finished.push(*id);
            } else if flow.unanswered(socket, now) {
                unanswered.push(*id);
            }
        }
        for id in finished {
            if let Some(flow) = self.flows.remove(&id) {
                self.sockets.remove(flow.handle);
            }
        }
        for id in unanswered {
            self.begin_anew(id, now);
        }
    }

    fn begin_anew(&mut self, id: u64, now: Instant) {
        let Some(port) = self.free_port() else { return };
        let Some(guest_port) = self.flows.get(&id).map(|flow| flow.guest_port) else {
            return;
        };
        let Some(handle) = self.connect(guest_port, port) else {
            return;
        };
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        self.sockets.remove(flow.handle);
        (flow.handle, flow.local_port, flow.begun) = (handle, port, now);
    }

    fn free_port(&mut self) -> Option<u16> {
        for _ in PORTS {
            let port = self.next_port;
            self.next_port = if port + 1 < PORTS.end {
                port + 1
            } else {
                PORTS.start
            };
            if !self.flows.values().any(|flow| flow.local_port == port) {
                return Some(port);
            }
        }
        None
    }

    /// Begins a connection to the guest.
    fn connect(&mut self, guest_port: u16, local_port: u16) -> Option<SocketHandle> {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let guest = (IpAddress::Ipv4(self.subnet.guest), guest_port);
        if let Err(error) = socket.connect(self.interface.context(), guest, local_port) {
            tracing::warn!(?error, guest_port, "cannot begin a connection to the guest");
            return None;
        }
        Some(self.sockets.add(socket))
    }

    fn accept(&mut self) {
        for at in 0..self.listeners.len() {
            loop {
                match self.listeners[at].socket.accept() {
                    Ok((stream, _)) => self.open(stream, self.listeners[at].guest_port),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => {
                        // Such as too many open files: the next round tries again.
                        tracing::warn!(%error, "accept failed");
                        break;
                    }
                }
            }
        }
    }

    fn open(&mut self, stream: TcpStream, guest_port: u16) {
        if self.flows.len() >= MAX_FLOWS {
            tracing::warn!("{MAX_FLOWS} client connections are open; one refused");
            return;
        }
        wire::net::tune(&stream);
        if let Err(error) = stream.set_nonblocking(true) {
            tracing::warn!(%error, "client connection refused");
            return;
        }
        let Some(port) = self.free_port() else { return };
        let Some(handle) = self.connect(guest_port, port) else {
            return;
        };
        let flow = Flow::new(stream, handle, guest_port, port, Instant::now());
        self.flows.insert(self.next_flow, flow);
        self.next_flow += 1;
    }

    /// Sleeps until a socket, the guest or the stack's timers want something.
    fn wait(&mut self) {
        let now = self.now();
        let stack = self
            .interface
            .poll_delay(now, &self.sockets)
            .map(Duration::from);
        let mut longest = stack.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
        if self.queue.blocked.load(Ordering::SeqCst) {
            // What is due cannot be sent now; the switch wakes this thread when it can.
            longest = LONGEST_WAIT;
        }
        let mut fds = vec![PollFd::new(self.queue.wake_fd(), PollFlags::POLLIN)];
        for listener in &self.listeners {
            fds.push(PollFd::new(listener.socket.as_fd(), PollFlags::POLLIN));
        }
        let before_flows = fds.len();
        let mut waiting = Vec::new();
        for (id, flow) in &self.flows {
            let socket = self.sockets.get::<Socket<'_>>(flow.handle);
            if let Some(flags) = flow.interest(socket) {
                fds.push(PollFd::new(flow.fd(), flags));
                waiting.push(*id);
            }
        }
        // Rounded up: a timer that is due in 0.3 ms must not be polled for in a busy loop.
        let millis = longest.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::ZERO);
        if poll(&mut fds, timeout).is_err() {
            // Interrupted: go round.
            return;
        }
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        let failed = fds[before_flows..]
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| events.intersects(gone)));
        let failed: Vec<u64> = waiting
            .iter()
            .zip(failed)
            .filter(|(_, failed)| *failed)
            .map(|(id, _)| *id)
            .collect();
        drop(fds);
        for id in failed {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.client_failed();
            }
        }
    }
}
