//! A guest for the switch's tests: a small TCP stack with an echo server, carried from one
//! replica's connection to the next as a failover would.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ft_netd::config::Subnet;
use ft_netd::{Forward, Handle, Outside};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as StackTime;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use wire::netport::{FromSwitch, Hello, Mac, Message, NetportClient, NetportSender, VERSION};
use wire::register::{ReplicaId, VmId};

pub const VM: VmId = VmId([5; 16]);
pub const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
pub const ECHO_PORT: u16 = 7;
const SOCKETS: usize = 4;

/// The switch, with the guest's echo port forwarded to any port of this host.
pub fn switch(outside: Outside) -> Handle {
    let forward = Forward {
        host: "127.0.0.1:0".parse().unwrap(),
        guest_port: ECHO_PORT,
    };
    ft_netd::serve(&ft_netd::Config {
        replicas: "127.0.0.1:0".to_owned(),
        outside,
        forwards: vec![forward],
        subnet: Subnet::default(),
    })
    .unwrap()
}

pub fn hello(replica: u64, view: u64, live: bool) -> Hello {
    Hello {
        version: VERSION,
        vm: VM,
        replica: ReplicaId(replica),
        view,
        live,
        mac: MAC,
    }
}

pub fn connect(switch: SocketAddr, replica: u64, view: u64, live: bool) -> NetportClient {
    let hello = hello(replica, view, live);
    NetportClient::connect(&switch.to_string(), &hello, Duration::from_secs(10)).unwrap()
}

/// A frame that only its text tells apart.
pub fn frame_to(to: Mac, text: &str) -> Bytes {
    let mut frame = to.0.to_vec();
    frame.extend(MAC.0);
    // An EtherType for local experiments.
    frame.extend([0x88, 0xb5]);
    frame.extend(text.as_bytes());
    Bytes::from(frame)
}

#[derive(Default)]
struct Card {
    inward: VecDeque<Bytes>,
    outward: VecDeque<Vec<u8>>,
}

struct Rx(Bytes);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl phy::Device for Card {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: StackTime) -> Option<(Rx, Tx<'_>)> {
        let frame = self.inward.pop_front()?;
        Some((Rx(frame), Tx(&mut self.outward)))
    }

    fn transmit(&mut self, _: StackTime) -> Option<Tx<'_>> {
        Some(Tx(&mut self.outward))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// The guest's state, as a replica would hold it.
struct Guest {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    echoes: Vec<SocketHandle>,
    began: Instant,
}

impl Guest {
    fn new(address: Ipv4Addr) -> Guest {
        let mut card = Card::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC.0)));
        let mut interface = Interface::new(config, &mut card, StackTime::ZERO);
        interface.update_ip_addrs(|addrs| {
            addrs
                .push(IpCidr::new(IpAddress::Ipv4(address), 24))
                .unwrap();
        });
        let mut sockets = SocketSet::new(Vec::new());
        let echoes = (0..SOCKETS)
            .map(|_| {
                let buffer = || SocketBuffer::new(vec![0; 64 << 10]);
                let mut socket = Socket::new(buffer(), buffer());
                socket.set_ack_delay(None);
                sockets.add(socket)
            })
            .collect();
        Guest {
            card,
            interface,
            sockets,
            echoes,
            began: Instant::now(),
        }
    }

    fn run(&mut self) {
        let now = StackTime::from_micros(self.began.elapsed().as_micros() as i64);
        for _ in 0..2 {
            self.interface.poll(now, &mut self.card, &mut self.sockets);
            for handle in &self.echoes {
                echo(self.sockets.get_mut::<Socket<'_>>(*handle));
            }
        }
    }
}

fn echo(socket: &mut Socket<'_>) {
    if !socket.is_open() {
        socket.listen(ECHO_PORT).unwrap();
    }
    while socket.can_recv() && socket.can_send() {
        let room = socket.send_capacity() - socket.send_queue();
        let data = socket.recv(|data| {
            let take = data.len().min(room);
            (take, data[..take].to_vec())
        });
        let data = data.unwrap();
        if data.is_empty() {
            break;
        }
        assert_eq!(socket.send_slice(&data).unwrap(), data.len());
    }
    if !socket.may_recv() && !socket.can_recv() && socket.may_send() {
        socket.close();
    }
}

enum Order {
    Attach(NetportClient),
    /// The replica dies: its connection closes, and what it had not handed to the guest is lost.
    Kill(Sender<()>),
    Stop,
}

/// A guest that runs in a thread, on one replica after the other.
pub struct Runner {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Runner {
    pub fn start(address: Ipv4Addr) -> Runner {
        let (orders, taken) = channel();
        let thread = std::thread::spawn(move || run(Guest::new(address), &taken));
        Runner {
            orders,
            thread: Some(thread),
        }
    }

    pub fn attach(&self, client: NetportClient) {
        self.orders.send(Order::Attach(client)).unwrap();
    }

    pub fn kill(&self) {
        let (done, wait) = channel();
        self.orders.send(Order::Kill(done)).unwrap();
        wait.recv().unwrap();
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.orders.send(Order::Stop).unwrap();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// A replica's connection; a thread of its own receives.
struct Attached {
    sender: NetportSender,
    frames: Receiver<Bytes>,
    /// Frames handed to the guest.
    handed: u64,
}

fn attach(client: NetportClient) -> Attached {
    let (sender, mut receiver) = client.split();
    let (give, frames) = channel();
    std::thread::spawn(move || {
        while let Ok(message) = receiver.recv() {
            let Message::Frame(frame) = message else {
                continue;
            };
            if give.send(frame).is_err() {
                return;
            }
        }
    });
    Attached {
        sender,
        frames,
        handed: 0,
    }
}

fn run(mut guest: Guest, orders: &Receiver<Order>) {
    let mut attached: Option<Attached> = None;
    loop {
        match orders.try_recv() {
            Ok(Order::Attach(client)) => attached = Some(attach(client)),
            Ok(Order::Kill(done)) => {
                attached.take().unwrap().sender.closer().unwrap().close();
                done.send(()).unwrap();
            }
            Ok(Order::Stop) => return,
            Err(_) => {}
        }
        let Some(replica) = &mut attached else {
            // No replica runs the guest: it stands still.
            match orders.recv() {
                Ok(Order::Attach(client)) => attached = Some(attach(client)),
                _ => return,
            }
            continue;
        };
        match replica.frames.recv_timeout(Duration::from_millis(1)) {
            Ok(frame) => {
                guest.card.inward.push_back(frame);
                replica.handed += 1;
                while let Ok(frame) = replica.frames.try_recv() {
                    guest.card.inward.push_back(frame);
                    replica.handed += 1;
                }
                // Every third report is late, so that some frames come twice after a failover.
                if replica.handed % 3 != 0 {
                    let _ = replica.sender.consumed(replica.handed);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                attached = None;
                continue;
            }
        }
        guest.run();
        for frame in std::mem::take(&mut guest.card.outward) {
            let _ = replica.sender.frame(&frame);
        }
    }
}

/// Waits for a control message; frames on the way are skipped.
pub fn expect_control(receiver: &mut wire::netport::NetportReceiver) -> FromSwitch {
    loop {
        if let Message::Control(control) = receiver.recv().unwrap() {
            return control;
        }
    }
}
