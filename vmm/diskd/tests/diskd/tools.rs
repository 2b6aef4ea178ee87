//! The tools that administrators use: nbdinfo, nbdcopy, qemu-io.

use crate::common::*;

fn good(package: &str, program: &str, args: &[&str]) -> String {
    let (success, text) = tool(package, program, args);
    assert!(success, "{program} {args:?}: {text}");
    text
}

#[test]
fn nbdinfo_reads_the_export() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), 8 << 20);
    let addr = server.nbd_addr();
    let one = good(
        "libnbd-bin",
        "nbdinfo",
        &["--json", &format!("nbd://{addr}/disk0")],
    );
    let one: serde_json::Value = serde_json::from_str(&one).unwrap();
    let export = &one["exports"][0];
    assert_eq!(export["export-size"], 8 << 20);
    for able in [
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_multi_conn",
    ] {
        assert_eq!(export[able], true, "{able}");
    }
    assert_eq!(export["is_read_only"], false);
    let list = good(
        "libnbd-bin",
        "nbdinfo",
        &["--list", "--json", &format!("nbd://{addr}")],
    );
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["exports"][0]["export-name"], "disk0");
    let (success, words) = tool("libnbd-bin", "nbdinfo", &[&format!("nbd://{addr}/nothing")]);
    assert!(!success, "{words}");
}

#[test]
fn nbdcopy_copies_in_and_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), 8 << 20);
    let uri = format!("nbd://{}/disk0", server.nbd_addr());
    let (source, back) = (dir.path().join("source"), dir.path().join("back"));
    let mut data: Vec<u8> = (0..8u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    data[1 << 20..3 << 20].fill(0);
    std::fs::write(&source, &data).unwrap();
    good("libnbd-bin", "nbdcopy", &[source.to_str().unwrap(), &uri]);
    assert!(
        std::fs::read(dir.path().join("disk.img")).unwrap() == data,
        "copied in"
    );
    good("libnbd-bin", "nbdcopy", &[&uri, back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == data, "copied out");
}

#[test]
fn qemu_io_writes_discards_and_flushes() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), 8 << 20);
    let uri = format!("nbd://{}/disk0", server.nbd_addr());
    let script = [
        "write -P 7 1M 64k",
        "write -f -P 8 2M 64k",
        "aio_write -P 9 3M 64k",
        "aio_flush",
        "flush",
        "discard 1M 32k",
        "write -z 4M 1M",
        "write -zu 5M 1M",
        "read -P 7 1056k 32k",
        "read -P 8 2M 64k",
        "read -P 9 3M 64k",
        "read -P 0 4M 2M",
    ];
    let mut args = vec!["-f", "raw"];
    for line in script {
        args.extend(["-c", line]);
    }
    args.push(&uri);
    let text = good("qemu-utils", "qemu-io", &args);
    assert!(!text.contains("failed"), "{text}");
}

#[test]
fn tools_may_only_read_while_the_machine_is_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), 1 << 20);
    let uri = format!("nbd://{}/disk0", server.nbd_addr());
    let mut register = register(server.register_addr());
    let on = register
        .create(VM, A, Some(B), &["disk0".to_owned()], false)
        .unwrap();
    assert_eq!(
        good("libnbd-bin", "nbdinfo", &["--is", "read-only", &uri]),
        ""
    );
    let write = ["-f", "raw", "-c", "write 0 512", &uri];
    let (_, text) = tool("qemu-utils", "qemu-io", &write);
    assert!(
        text.contains("Permission denied") || text.contains("read-only"),
        "{text}"
    );
    let untouched = std::fs::read(dir.path().join("disk.img")).unwrap();
    assert!(untouched.iter().all(|byte| *byte == 0));
    register.off(VM, on.view.number).unwrap();
    good(
        "qemu-utils",
        "qemu-io",
        &["-f", "raw", "-c", "write -P 5 0 512", &uri],
    );
}
