//! What goes wrong is said in words, and hostile bytes do no harm.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::*;
use ft_diskd::{ServeError, serve};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wire::nbd::{Errno, NbdError};

#[test]
fn a_port_in_use_a_missing_disk_and_a_second_server_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), 1 << 20);
    let other = tempfile::tempdir().unwrap();
    make_image(other.path(), 1 << 20);
    let mut config = config(other.path());
    config.nbd = server.nbd_addr().to_string();
    let error = serve(&config).err().unwrap().to_string();
    assert!(
        error.contains("in use") && error.contains("port 0"),
        "{error}"
    );
    config.nbd = "127.0.0.1:0".to_owned();
    config.disks[0].path = other.path().join("gone.img");
    let error = serve(&config).err().unwrap().to_string();
    assert!(error.contains("gone.img"), "{error}");
    config.disks[0].path = dir.path().join("disk.img");
    assert!(matches!(serve(&config), Err(ServeError::Image(_))));
    config.disks.clear();
    assert!(matches!(serve(&config), Err(ServeError::NoDisk)));
}

#[test]
fn the_program_ends_in_order_and_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    make_image(dir.path(), 1 << 20);
    let mut server = program(dir.path());
    let pid = nix::unistd::Pid::from_raw(server.child.id() as i32);
    // With a connection open, which must not keep it.
    let _held = open(&server.nbd, &plain()).unwrap();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(server.child.wait().unwrap().success());
    let output = Command::new(env!("CARGO_BIN_EXE_ft-diskd"))
        .args([
            "--nbd",
            "127.0.0.1:0",
            "--register",
            "127.0.0.1:0",
            "--disk",
            "name=d,path=/none",
        ])
        .arg("--state")
        .arg(dir.path().join("state"))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && words.contains("/none"),
        "{words}"
    );
}

/// A file system of 1 MiB in a mount namespace of the server's own.
#[test]
fn a_full_disk_is_no_space_and_nothing_worse() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=1M tmpfs "$1" && truncate -s 8M "$1/disk.img" &&
        exec "$2" --nbd 127.0.0.1:0 --register 127.0.0.1:0 --state "$3" \
             --disk "name=disk0,path=$1/disk.img""#;
    let mount = dir.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&mount)
        .arg(env!("CARGO_BIN_EXE_ft-diskd"))
        .arg(dir.path().join("state"))
        .env("RUST_LOG", "error")
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare (Debian package util-linux) runs, as root");
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).expect("the server is ready");
    let mut disk = open(ready["nbd"].as_str().unwrap(), &plain()).unwrap();
    disk.write(0, &[1; 4096], true).unwrap();
    let error = disk.write(4096, &vec![2; 2 << 20], false).unwrap_err();
    assert!(matches!(error, NbdError::Refused(Errno::NOSPC)), "{error}");
    assert_eq!(disk.read(0, 4096).unwrap(), vec![1; 4096]);
    disk.trim(4096, 2 << 20).unwrap();
    disk.write(4096, &[3; 4096], false).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn requests_out_of_bounds_or_unknown_are_refused_and_the_connection_lives() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), 1 << 20);
    let mut disk = open(server.nbd_addr(), &plain()).unwrap();
    let end = 1 << 20;
    let refused = |result: Result<(), NbdError>, errno: Errno| match result {
        Err(NbdError::Refused(found)) => assert_eq!(found, errno),
        other => panic!("{other:?} instead of {errno}"),
    };
    refused(disk.read(end, 1).map(drop), Errno::INVAL);
    refused(disk.read(u64::MAX, 512).map(drop), Errno::INVAL);
    refused(disk.write(end - 1, &[0; 2], false), Errno::NOSPC);
    refused(disk.write_zeroes(u64::MAX - 1, 4096), Errno::NOSPC);
    refused(disk.trim(end, 1), Errno::INVAL);
    disk.read(end, 0).unwrap();
    disk.write(end, &[], true).unwrap();
    disk.write(0, &[5; 512], false).unwrap();
    assert_eq!(disk.read(0, 512).unwrap(), vec![5; 512]);
}

/// Bytes that begin well and go wrong at random; then the server must still serve.
#[test]
fn hostile_bytes_do_no_harm() {
    let seed: u64 =
        std::env::var("SEED").map_or_else(|_| rand::rng().random(), |s| s.parse().unwrap());
    println!("repeat with SEED={seed} cargo test --release -p ft-diskd --test diskd errors");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), 1 << 20);
    let mut good = 3u32.to_be_bytes().to_vec();
    good.extend(b"IHAVEOPT");
    good.extend([0, 0, 0, 7, 0, 0, 0, 11, 0, 0, 0, 5]);
    good.extend(b"disk0\0\0");
    for _ in 0..8 {
        good.extend([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1]);
        good.extend([0; 16]);
        good.extend([0, 0, 0, 4, 1, 2, 3, 4]);
    }
    for round in 0..300 {
        let to_register = round % 3 == 0;
        let addr = if to_register {
            server.register_addr()
        } else {
            server.nbd_addr()
        };
        let mut stream = TcpStream::connect(addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(2)))
            .unwrap();
        let mut bytes = good.clone();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        if round % 5 == 0 {
            random.fill(&mut bytes[..]);
        }
        bytes.truncate(random.random_range(1..=bytes.len()));
        // The server may hang up at any byte.
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 512]);
    }
    open(server.nbd_addr(), &plain())
        .unwrap()
        .read(0, 512)
        .unwrap();
    assert_eq!(register(server.register_addr()).get(VM).unwrap(), None);
}
