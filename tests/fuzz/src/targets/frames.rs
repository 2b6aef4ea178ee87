//! Frames of a hostile guest to the user-mode network: Ethernet, ARP, IP, DHCP, TCP. A client of the
//! host is connected to the guest meanwhile. Afterwards the gateway still answers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use ft_netd::Forward;
use wire::netport::{Message, NetportClient, NetportReceiver, NetportSender};

use super::netport;
use crate::Target;
use crate::input::{Input, put_block};

pub const TARGET: Target = Target {
    name: "guest-frames",
    about: "a hostile guest's frames to the user-mode network: ARP, IP, DHCP, TCP",
    run,
    samples,
    cases: 200,
};

const GUEST: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];
/// How long the gateway may take for an answer on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

// Steps.
const RAW: u8 = 0;
const SEGMENT: u8 = 1;
const CLIENT: u8 = 2;
const STEPS: u8 = 3;

struct Network {
    sender: NetportSender,
    frames: Receiver<Vec<u8>>,
    client: TcpStream,
    /// The stack's last TCP segment: its ports, sequence number and what it has.
    last: Option<Segment>,
    pings: u16,
}

#[derive(Clone, Copy)]
struct Segment {
    from: u16,
    to: u16,
    next: u32,
    acked: u32,
}

/// Input: steps.
fn run(bytes: &[u8]) {
    let forward = Forward {
        host: ([127, 0, 0, 1], 0).into(),
        guest_port: 80,
    };
    let switch = ft_netd::serve(&netport::config(vec![forward])).expect("a switch on loopback");
    let addr = switch.replicas().to_string();
    let hello = netport::hello(1, 1, true);
    let port = NetportClient::connect(&addr, &hello, PATIENCE).expect("a sound replica is welcome");
    let (sender, receiver) = port.split();
    let closer = sender.closer().expect("a second handle of a socket");
    let client = TcpStream::connect(switch.forwards()[0].host).expect("the forward listens");
    client.set_nonblocking(true).expect("a socket's option");
    let (queue, frames) = crossbeam_channel::unbounded();
    std::thread::scope(|scope| {
        scope.spawn(move || forward_frames(receiver, &queue));
        let mut network = Network {
            sender,
            frames,
            client,
            last: None,
            pings: 0,
        };
        network.ping();
        let mut input = Input::new(bytes);
        while !input.is_empty() {
            network.step(&mut input);
        }
        network.ping();
        if network.last.is_some() {
            crate::findings::accepted();
        }
        closer.close();
    });
}

fn forward_frames(mut receiver: NetportReceiver, queue: &crossbeam_channel::Sender<Vec<u8>>) {
    while let Ok(message) = receiver.recv() {
        if let Message::Frame(frame) = message
            && queue.send(frame.to_vec()).is_err()
        {
            return;
        }
    }
}

impl Network {
    fn send(&mut self, frame: &[u8]) {
        // Too short or too long for the wire; the switch is there until the end.
        let _ = self.sender.frame(frame);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % STEPS {
            RAW => {
                let frame = input.block();
                self.send(frame);
            }
            SEGMENT => {
                let (flags, sequence, acknowledge) = (input.u8(), input.u8(), input.u8());
                let (window, payload) = (input.u16(), input.block());
                self.ping();
                let Some(last) = self.last else { return };
                let signed = |byte: u8| i32::from(byte as i8) as u32;
                let at = last.acked.wrapping_add(signed(sequence));
                let acks = last.next.wrapping_add(signed(acknowledge));
                let frame = tcp(
                    last,
                    at,
                    acks,
                    flags,
                    window,
                    &payload[..payload.len().min(1400)],
                );
                self.send(&frame);
            }
            _ => {
                let data = input.block();
                // It may have been reset, and may not take all.
                let _ = self.client.write(data);
                let _ = self.client.read(&mut [0; 4096]);
            }
        }
    }

    /// Asks the gateway for an echo and takes all frames up to the answer.
    fn ping(&mut self) {
        self.pings += 1;
        let id = self.pings;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            // The stack must know where the guest is, whatever it was told before.
            self.send(&arp());
            self.send(&echo(id));
            let wait = Instant::now() + PATIENCE / 10;
            while let Ok(frame) = self.frames.recv_deadline(wait) {
                self.note(&frame);
                if is_echo_reply(&frame, id) {
                    return;
                }
            }
        }
        panic!("the gateway does not answer any more");
    }

    /// Remembers where a TCP connection stands.
    fn note(&mut self, frame: &[u8]) {
        let Some(tcp) = payload(frame, 6) else { return };
        let Some(([a, b, c, d, e, f, g, h, i, j, k, l, offset, flags], _)) =
            tcp.split_first_chunk::<14>()
        else {
            return;
        };
        let len = tcp.len().saturating_sub(usize::from(offset >> 4) * 4) as u32;
        let starts = u32::from(flags & 3 != 0);
        self.last = Some(Segment {
            from: u16::from_be_bytes([*a, *b]),
            to: u16::from_be_bytes([*c, *d]),
            next: u32::from_be_bytes([*e, *f, *g, *h]).wrapping_add(len + starts),
            acked: u32::from_be_bytes([*i, *j, *k, *l]),
        });
    }
}

/// What an IPv4 packet of this protocol carries.
fn payload(frame: &[u8], protocol: u8) -> Option<&[u8]> {
    let ip = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
    let (first, kind) = (ip.first()?, ip.get(9)?);
    let total = u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]);
    (*kind == protocol).then_some(())?;
    ip.get(usize::from(first & 15) * 4..usize::from(total))
}

fn is_echo_reply(frame: &[u8], id: u16) -> bool {
    let reply =
        |icmp: &[u8]| icmp.starts_with(&[0, 0]) && icmp.get(4..6) == Some(&id.to_be_bytes());
    payload(frame, 1).is_some_and(reply)
}

fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn ethernet(to: [u8; 6], kind: u16, body: &[u8]) -> Vec<u8> {
    [&to, &netport::MAC.0, &kind.to_be_bytes()[..], body].concat()
}

fn ip(protocol: u8, from: [u8; 4], to: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + body.len() as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(from);
    header.extend(to);
    let checksum = sum(&[&header]).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    [header, body.to_vec()].concat()
}

/// The guest asks for the gateway's address.
fn arp() -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(netport::MAC.0);
    body.extend(GUEST);
    body.extend([0; 6]);
    body.extend(GATEWAY);
    ethernet([0xff; 6], 0x0806, &body)
}

/// The guest answers the gateway.
fn arp_reply() -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 2];
    body.extend(netport::MAC.0);
    body.extend(GUEST);
    body.extend(GATEWAY_MAC);
    body.extend(GATEWAY);
    ethernet(GATEWAY_MAC, 0x0806, &body)
}

fn echo(id: u16) -> Vec<u8> {
    let mut body = vec![8, 0, 0, 0];
    body.extend(id.to_be_bytes());
    body.extend([0, 1, 1, 2, 3, 4]);
    let checksum = sum(&[&body]).to_be_bytes();
    body[2..4].copy_from_slice(&checksum);
    ethernet(GATEWAY_MAC, 0x0800, &ip(1, GUEST, GATEWAY, &body))
}

/// A segment of the guest to whoever sent `last`.
fn tcp(last: Segment, at: u32, acks: u32, flags: u8, window: u16, data: &[u8]) -> Vec<u8> {
    let mut body = last.to.to_be_bytes().to_vec();
    body.extend(last.from.to_be_bytes());
    body.extend(at.to_be_bytes());
    body.extend(acks.to_be_bytes());
    body.extend([0x50, flags]);
    body.extend(window.to_be_bytes());
    body.extend([0; 4]);
    body.extend(data);
    let length = (body.len() as u16).to_be_bytes();
    let checksum = sum(&[&GUEST, &GATEWAY, &[0, 6], &length, &body]).to_be_bytes();
    body[16..18].copy_from_slice(&checksum);
    ethernet(GATEWAY_MAC, 0x0800, &ip(6, GUEST, GATEWAY, &body))
}

fn dhcp(kind: u8) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(netport::MAC.0);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, kind, 50, 4]);
    message.extend(GUEST);
    message.extend([55, 3, 1, 3, 6, 255]);
    let mut udp = vec![0, 68, 0, 67];
    udp.extend((8 + message.len() as u16).to_be_bytes());
    // No checksum.
    udp.extend([0, 0]);
    udp.extend(message);
    ethernet([0xff; 6], 0x0800, &ip(17, [0; 4], [255; 4], &udp))
}

fn samples() -> Vec<Vec<u8>> {
    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;
    const PUSH: u8 = 0x18;
    const FIN: u8 = 0x11;
    const RESET: u8 = 0x14;
    let raw = |out: &mut Vec<u8>, frame: &[u8]| {
        out.push(RAW);
        put_block(out, frame);
    };
    let segment = |out: &mut Vec<u8>, flags: u8, data: &[u8]| {
        out.extend([SEGMENT, flags, 0, 0, 0xff, 0x7f]);
        put_block(out, data);
    };
    let mut plain = Vec::new();
    for frame in [arp(), arp_reply(), dhcp(1), dhcp(3), echo(500)] {
        raw(&mut plain, &frame);
    }
    let unasked = Segment {
        from: 9,
        to: 10,
        next: 11,
        acked: 12,
    };
    raw(&mut plain, &tcp(unasked, 1, 0, 2, 100, b""));
    let mut talk = Vec::new();
    raw(&mut talk, &arp_reply());
    segment(&mut talk, SYN_ACK, b"");
    segment(&mut talk, ACK, b"");
    talk.push(CLIENT);
    put_block(&mut talk, b"GET / HTTP/1.0\r\n\r\n");
    segment(&mut talk, PUSH, b"HTTP/1.0 200 OK\r\n\r\n");
    segment(&mut talk, ACK, b"");
    let mut reset = talk.clone();
    segment(&mut reset, RESET, b"");
    segment(&mut talk, FIN, b"");
    segment(&mut talk, ACK, b"");
    vec![plain, talk, reset]
}
