//! `passt` behind the switch, in a namespace with an interface that it can take for the world.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::guest::{self, MAC, Runner, connect};
use crate::namespace::{in_namespace, ip};
use ft_netd::config::Subnet;
use ft_netd::{Handle, Outside};
use wire::netport::Message;

fn switch() -> Handle {
    ip("link add name world0 type bridge");
    ip("addr add 192.0.2.10/24 dev world0");
    ip("link set world0 up");
    ip("route add default via 192.0.2.1");
    guest::switch(Outside::Passt)
}

/// The guest asks for its gateway's address, as every system does when its network comes up:
/// `passt` learns the guest's address from what it sends.
fn say_hello(switch: &Handle) {
    let (mut sender, mut receiver) = connect(switch.replicas(), 1, 1, true).split();
    let subnet = Subnet::default();
    let mut request = [[0xff; 6], MAC.0].concat();
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(
        [
            &MAC.0[..],
            &subnet.guest.octets(),
            &[0; 6],
            &subnet.gateway.octets(),
        ]
        .concat(),
    );
    sender.frame(&request).unwrap();
    loop {
        if let Message::Frame(_) = receiver.recv().unwrap() {
            return;
        }
    }
}

fn client(switch: &Handle) -> TcpStream {
    let stream = TcpStream::connect(switch.forwards()[0].host).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

/// A connection on which the guest has answered. `passt` resets those that come before it has seen
/// the guest's hello, and does not say when it has.
fn greeted(switch: &Handle, back: &mut [u8; 6]) -> TcpStream {
    for _ in 0..1000 {
        let mut stream = client(switch);
        let asked = stream.write_all(b"before");
        if asked.and_then(|()| stream.read_exact(back)).is_ok() {
            return stream;
        }
        std::thread::yield_now();
    }
    panic!("passt has reset a thousand connections");
}

#[test]
fn a_client_reaches_the_guest_and_survives_a_short_failover() {
    in_namespace(|| {
        let switch = switch();
        let guest = Runner::start(Subnet::default().guest);
        say_hello(&switch);
        guest.attach(connect(switch.replicas(), 2, 2, true));
        let mut back = [0; 6];
        let mut stream = greeted(&switch, &mut back);
        guest.kill();
        stream.write_all(b"during").unwrap();
        guest.attach(connect(switch.replicas(), 3, 3, true));
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"during");
    });
}

/// Why `--net user` is the default. Run it by
/// `cargo test --release -p ft-netd --test netd passt -- --ignored --nocapture`.
#[test]
#[ignore = "takes up to 30 s of silence"]
fn passt_gives_a_silent_guest_up() {
    in_namespace(|| {
        let switch = switch();
        let guest = Runner::start(Subnet::default().guest);
        say_hello(&switch);
        guest.attach(connect(switch.replicas(), 2, 2, true));
        let mut stream = client(&switch);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        guest.kill();
        let began = Instant::now();
        stream.write_all(b"into the silence").unwrap();
        let error = stream.read_exact(&mut [0; 1]).unwrap_err();
        assert!(matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
        ));
        println!("{error} after {:.1} s", began.elapsed().as_secs_f64());
    });
}
