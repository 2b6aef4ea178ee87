//! The program itself: its ready line, its end, its words, and hostile bytes at its door.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::guest::{connect, hello};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wire::netport::{Hello, Mac, NetportClient, NetportError, ToSwitch, control_bytes};
use wire::register::VmId;

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ft-netd"));
    command
        .args(args)
        .env("RUST_LOG", "error")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn ready(child: &mut Child) -> serde_json::Value {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    serde_json::from_str(&line).unwrap_or_else(|_| panic!("not ready: {line:?}"))
}

#[test]
fn it_says_where_it_listens_and_ends_in_order() {
    let args = ["--replicas", "127.0.0.1:0", "--forward", "127.0.0.1:0:6379"];
    let mut child = program(&args).spawn().unwrap();
    let ready = ready(&mut child);
    let replicas: std::net::SocketAddr = ready["replicas"].as_str().unwrap().parse().unwrap();
    assert_eq!(ready["forwards"][0]["guest_port"], 6379);
    let host = ready["forwards"][0]["host"].as_str().unwrap().to_owned();
    let _replica = connect(replicas, 1, 1, true);
    let _client = TcpStream::connect(&host).unwrap();
    let taken = [
        "--replicas",
        "127.0.0.1:0",
        "--forward",
        &format!("{host}:80"),
    ];
    let output = program(&taken).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && words.contains("in use"),
        "{words}"
    );
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_replica_of_another_version_is_refused_in_words() {
    let mut child = program(&["--replicas", "127.0.0.1:0"]).spawn().unwrap();
    let addr = ready(&mut child)["replicas"].as_str().unwrap().to_owned();
    let foreign = Hello {
        version: 99,
        ..hello(1, 1, true)
    };
    let refused = NetportClient::connect(&addr, &foreign, Duration::from_secs(20))
        .err()
        .unwrap();
    assert!(
        matches!(&refused, NetportError::Refused(why) if why.contains("99")),
        "{refused}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Connections that begin well and go wrong at random; then the switch must still serve.
#[test]
fn hostile_bytes_do_no_harm() {
    let seed: u64 =
        std::env::var("SEED").map_or_else(|_| rand::rng().random(), |s| s.parse().unwrap());
    println!("repeat with SEED={seed} cargo test --release -p ft-netd --test netd program");
    let mut random = StdRng::seed_from_u64(seed);
    let mut child = program(&["--replicas", "127.0.0.1:0"]).spawn().unwrap();
    let addr: std::net::SocketAddr = ready(&mut child)["replicas"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let mut good = control_bytes(&ToSwitch::Hello(hello(7, 1, true))).unwrap();
    good.extend([0, 0, 0, 20]);
    good.extend([0xff; 20]);
    good.extend(control_bytes(&ToSwitch::Consumed { frames: 0 }).unwrap());
    good.extend(control_bytes(&ToSwitch::GoLive { view: 2 }).unwrap());
    for round in 0..300 {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(2)))
            .unwrap();
        let mut bytes = good.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        if round % 5 == 0 {
            random.fill(&mut bytes[..]);
        }
        bytes.truncate(random.random_range(1..=bytes.len()));
        // The switch may hang up at any byte.
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 512]);
    }
    // The noise may have taken any address near `MAC` and any view of `VM`; a machine that has
    // no byte in common with them is served.
    let unheard = Hello {
        vm: VmId([0xa7; 16]),
        mac: Mac([0x02, 0xa7, 0xa7, 0xa7, 0xa7, 0xa7]),
        ..hello(8, 1, true)
    };
    let client = NetportClient::connect(&addr.to_string(), &unheard, Duration::from_secs(20));
    let (_sender, mut receiver) = client.unwrap().split();
    crate::guest::expect_control(&mut receiver);
    child.kill().unwrap();
    child.wait().unwrap();
}
