//! Connections of hostile replicas to the switch, and what replicas read from a hostile one.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use ft_netd::config::Subnet;
use ft_netd::{Config, Outside};
use wire::netport::{
    FromSwitch, Hello, Mac, Message, NetportClient, ToSwitch, VERSION, control_bytes, frame_header,
    read_message,
};

use super::toy;
use crate::Target;
use crate::input::{Input, put_block};

pub const TARGET: Target = Target {
    name: "netport",
    about: "the switch's ports with hostile replicas; afterwards a sound one is welcome",
    run,
    samples,
    cases: 300,
};

pub const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

pub fn hello(replica: u64, view: u64, live: bool) -> Hello {
    Hello {
        version: VERSION,
        vm: toy::VM,
        replica: ftlog::ReplicaId(replica),
        view,
        live,
        mac: MAC,
    }
}

pub fn config(forwards: Vec<ft_netd::Forward>) -> Config {
    Config {
        replicas: "127.0.0.1:0".into(),
        outside: Outside::User,
        forwards,
        subnet: Subnet::default(),
    }
}

/// Input: what each of three connections sends, as blocks.
fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let switch = ft_netd::serve(&config(Vec::new())).expect("a switch on loopback");
    let addr = switch.replicas();
    let connect = || TcpStream::connect(addr).expect("the switch listens");
    let streams = [connect(), connect(), connect()];
    for mut stream in &streams {
        let sent = input.block();
        for from_switch in [true, false] {
            let mut rest = sent;
            while let Ok(Some(_)) = read(&mut rest, from_switch) {}
        }
        // The switch may hang up first.
        let _ = stream.write_all(sent);
        let _ = stream.shutdown(Shutdown::Write);
    }
    for mut stream in &streams {
        let mut scrap = [0; 4096];
        while let Ok(1..) = stream.read(&mut scrap) {}
    }
    if !switch.status().is_empty() {
        crate::findings::accepted();
    }
    let other = Hello {
        vm: ftlog::VmId([0xee; 16]),
        mac: Mac([2, 0xee, 0, 0xee, 0, 0xee]),
        ..hello(9, 1, true)
    };
    let client = NetportClient::connect(&addr.to_string(), &other, Duration::from_secs(10));
    client.expect("a sound replica is welcome");
    assert!(!switch.status().is_empty());
}

fn read(bytes: &mut &[u8], from_switch: bool) -> Result<Option<()>, wire::netport::WireError> {
    Ok(if from_switch {
        read_message::<FromSwitch>(bytes)?.map(|_: Message<FromSwitch>| ())
    } else {
        read_message::<ToSwitch>(bytes)?.map(|_: Message<ToSwitch>| ())
    })
}

fn samples() -> Vec<Vec<u8>> {
    let control = |message: &ToSwitch| control_bytes(message).expect("a short message");
    let frame = |bytes: &[u8]| {
        let header = frame_header(bytes).expect("a frame of a possible length");
        [&header[..], bytes].concat()
    };
    let mut primary = control(&ToSwitch::Hello(hello(1, 1, true)));
    let mut broadcast = vec![0xff; 6];
    broadcast.extend(MAC.0);
    broadcast.extend([0; 48]);
    primary.extend(frame(&broadcast));
    primary.extend(control(&ToSwitch::Consumed { frames: 0 }));
    primary.extend(frame(&[2; 1514]));
    let mut backup = control(&ToSwitch::Hello(hello(2, 1, false)));
    backup.extend(control(&ToSwitch::GoLive { view: 2 }));
    backup.extend(frame(&broadcast));
    backup.extend(control(&ToSwitch::Consumed { frames: 1 }));
    let mut sample = Vec::new();
    for part in [&primary, &backup, &primary] {
        put_block(&mut sample, part);
    }
    vec![sample]
}
