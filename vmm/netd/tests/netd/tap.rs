//! The guest on a real L2 network of the host, through a TAP interface and a bridge.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::guest::{ECHO_PORT, Runner, connect};
use crate::namespace::{in_namespace, ip};
use ft_netd::config::Subnet;
use ft_netd::{Config, Handle, Outside, serve};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 15);

fn switch(net: &str) -> Handle {
    let outside: Outside = net.parse().unwrap();
    let replicas = "127.0.0.1:0".to_owned();
    serve(&Config {
        replicas,
        outside,
        forwards: Vec::new(),
        subnet: Subnet::default(),
    })
    .unwrap()
}

fn echo(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

/// A connection over `interface`, and a failover under it.
fn survives_a_failover(switch: &Handle, interface: &str) {
    ip(&format!("addr add 10.77.0.1/24 dev {interface}"));
    let guest = Runner::start(GUEST);
    guest.attach(connect(switch.replicas(), 1, 1, true));
    let mut stream = TcpStream::connect((GUEST, ECHO_PORT)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    echo(&mut stream, b"before");
    guest.kill();
    stream.write_all(b"into the silence").unwrap();
    guest.attach(connect(switch.replicas(), 2, 2, true));
    let mut back = [0; 16];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"into the silence");
    echo(&mut stream, b"after");
}

#[test]
fn a_tap_interface() {
    in_namespace(|| {
        let switch = switch("tap=ft0");
        survives_a_failover(&switch, "ft0");
    });
}

#[test]
fn a_tap_interface_on_a_bridge() {
    in_namespace(|| {
        ip("link add name br0 type bridge");
        ip("link set br0 up");
        let switch = switch("tap=ft0,bridge=br0");
        survives_a_failover(&switch, "br0");
    });
}

#[test]
fn a_missing_bridge_is_explained() {
    in_namespace(|| {
        let outside: Outside = "tap=ft0,bridge=none0".parse().unwrap();
        let replicas = "127.0.0.1:0".to_owned();
        let config = Config {
            replicas,
            outside,
            forwards: Vec::new(),
            subnet: Subnet::default(),
        };
        let error = serve(&config).err().unwrap().to_string();
        assert!(error.contains("none0"), "{error}");
    });
}
