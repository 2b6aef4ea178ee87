//! Tests of the parts that need no network and no root; the whole build is
//! run by the project's test command.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::apt::{Deb, Lock, parse_uri_line, sources_from_targets};
use crate::cpio::Archive;
use crate::kernel::load_order;
use crate::{BuildError, Options, build, recipe, sparse};

#[test]
fn print_uris_lines_are_parsed() {
    let line = "'http://deb.debian.org/debian/pool/main/r/redis/redis-server_7.0.15-1%7edeb12u10_amd64.deb' \
                redis-server_5%3a7.0.15-1~deb12u10_amd64.deb 72436 SHA256:00ff";
    let deb = parse_uri_line(line).unwrap();
    assert_eq!(deb.name, "redis-server");
    assert_eq!(deb.version, "5:7.0.15-1~deb12u10");
    assert_eq!(deb.file, "redis-server_5%3a7.0.15-1~deb12u10_amd64.deb");
    assert_eq!(deb.bytes, 72436);
    for bad in [
        "'x' a_1_amd64.deb nine SHA256:00",
        "'x' a_1_amd64.deb 9 MD5Sum:00",
        "'x' ../a_1_amd64.deb 9 SHA256:00",
        "'x' a.deb 9 SHA256:00",
        "'x'",
    ] {
        assert!(parse_uri_line(bad).is_err(), "{bad}");
    }
}

#[test]
fn only_debian_12_sources_are_taken() {
    let targets = "Packages|deb|http://mirror.example/debian/|bookworm|main\n\
                   DEP-11|deb|http://mirror.example/debian/|bookworm|main\n\
                   Packages|deb|http://mirror.example/debian/|bookworm|contrib\n\
                   Packages|deb|http://mirror.example/debian/|trixie|main\n\
                   Packages|deb|https://other.example/apt|bookworm|main\n\
                   Packages|deb|http://mirror.example/debian/|bookworm|main\n";
    let sources = sources_from_targets(targets);
    assert_eq!(sources.lines().count(), 1, "{sources}");
    assert!(sources.contains("http://mirror.example/debian/ bookworm main"));
    // A machine that is not set up for Debian 12 gets Debian's own servers.
    let fallback = sources_from_targets("Packages|deb|http://x/debian/|trixie|main\n");
    assert_eq!(fallback.lines().count(), 3, "{fallback}");
}

#[test]
fn modules_come_after_what_they_depend_on() {
    let dep = "kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n\
               kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko\n\
               kernel/net/core/failover.ko:\n\
               kernel/drivers/virtio/virtio_ring.ko:\n\
               kernel/drivers/char/hw_random/rng-core.ko.xz:\n";
    let builtin = "kernel/fs/ext4/ext4.ko\n";
    let order = load_order(dep, builtin, &["ext4", "virtio_net", "virtio", "rng_core"]).unwrap();
    assert_eq!(
        order,
        [
            "kernel/drivers/virtio/virtio_ring.ko",
            "kernel/drivers/virtio/virtio.ko",
            "kernel/net/core/failover.ko",
            "kernel/drivers/net/virtio_net.ko",
            "kernel/drivers/char/hw_random/rng-core.ko.xz",
        ]
    );
    let error = load_order(dep, builtin, &["absent"]).unwrap_err();
    assert!(error.to_string().contains("'absent'"), "{error}");
}

#[test]
fn archives_are_aligned_and_end_with_the_trailer() {
    let mut archive = Archive::default();
    archive.folder("dev");
    archive.file("init", 0o755, b"#!/bin/sh\n");
    archive.symlink("bin/sh", "busybox");
    archive.character_device("dev/console", 0o600, 5, 1);
    let bytes = archive.finish();
    assert!(bytes.len().is_multiple_of(4));
    let mut names = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        assert_eq!(&bytes[at..at + 6], b"070701");
        let field = |n: usize| {
            let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
            usize::from_str_radix(text, 16).unwrap()
        };
        let (size, name_size) = (field(6), field(11));
        let name = &bytes[at + 110..at + 110 + name_size - 1];
        names.push(String::from_utf8(name.to_vec()).unwrap());
        at = (at + 110 + name_size).next_multiple_of(4);
        at = (at + size).next_multiple_of(4);
    }
    assert_eq!(
        names,
        ["dev", "init", "bin/sh", "dev/console", "TRAILER!!!"]
    );
}

#[test]
fn a_copy_is_equal_and_sparse() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let file = fs::File::create(&from).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"middle", (20 << 20) + 123).unwrap();
    fs::write(&to, vec![7; 100]).unwrap();
    sparse::copy(&from, &to).unwrap();
    assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
    let allocated = fs::metadata(&to).unwrap().blocks() * 512;
    assert!(allocated < 8 << 20, "{allocated} bytes allocated");
    let error = sparse::copy(&folder.path().join("absent"), &to).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}

fn lock() -> Lock {
    let deb = |name: &str| Deb {
        name: name.into(),
        version: "1".into(),
        file: format!("{name}_1_amd64.deb"),
        bytes: 1,
        hash: format!("SHA256:{name}"),
    };
    Lock {
        essential: vec![deb("base-files")],
        packages: vec![deb("redis-server")],
        kernel: deb("linux-image"),
    }
}

#[test]
fn whatever_changes_the_image_changes_its_key() {
    let base = Options::default();
    let key = recipe::image_key(&base, &lock());
    let variants = [
        Options {
            disk_bytes: 2 << 30,
            ..base.clone()
        },
        Options {
            hostname: "other".into(),
            ..base.clone()
        },
        Options {
            ssh_key: Some("ssh-ed25519 AAAA x".into()),
            ..base.clone()
        },
    ];
    for options in variants {
        assert_ne!(recipe::image_key(&options, &lock()), key, "{options:?}");
    }
    let mut newer = lock();
    newer.kernel.hash = "SHA256:newer".into();
    assert_ne!(recipe::image_key(&base, &newer), key);
    let moved = Options {
        cache: Some("/elsewhere".into()),
        ..base.clone()
    };
    assert_eq!(recipe::image_key(&moved, &lock()), key);
    let more = Options {
        packages: vec!["iperf3".into()],
        ..base.clone()
    };
    assert_ne!(recipe::package_key(&more), recipe::package_key(&base));
}

#[test]
fn bad_options_are_refused_by_name() {
    let base = Options::default();
    let cases = [
        (
            Options {
                disk_bytes: 1000,
                ..base.clone()
            },
            "size",
        ),
        (
            Options {
                disk_bytes: (1 << 30) + 1,
                ..base.clone()
            },
            "size",
        ),
        (
            Options {
                hostname: "a b".into(),
                ..base.clone()
            },
            "hostname",
        ),
        (
            Options {
                hostname: "-a".into(),
                ..base.clone()
            },
            "hostname",
        ),
        (
            Options {
                packages: vec!["-o=x".into()],
                ..base.clone()
            },
            "packages",
        ),
        (
            Options {
                packages: vec![String::new()],
                ..base.clone()
            },
            "packages",
        ),
        (
            Options {
                ssh_key: Some("a\nb".into()),
                ..base.clone()
            },
            "ssh-key",
        ),
    ];
    for (options, expected) in cases {
        match build(&options, &mut |_| ()) {
            Err(BuildError::Option { option, .. }) => assert_eq!(option, expected),
            other => panic!("{options:?} gave {other:?}"),
        }
    }
}
