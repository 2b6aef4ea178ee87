//! The checks on this host, and their judgement on made-up hosts.

use std::path::Path;

use super::*;

#[test]
fn this_host_is_judged_and_nothing_is_claimed() {
    let all = checks();
    for check in &all {
        println!("{check:?}");
    }
    assert_eq!(all[0].result, Outcome::Warn);
    assert!(all[0].detail.contains("not verified on real hardware"));
    let failed: Vec<_> = all.iter().filter(|c| c.result == Outcome::Fail).collect();
    let exact = all.iter().find(|c| c.name.ends_with("exact"));
    if let Some(exact) = exact {
        // Either it counts, or something says why it cannot.
        assert!(exact.result == Outcome::Ok || !failed.is_empty());
    }
}

#[test]
fn loops_must_be_counted_to_the_branch() {
    let counts = |add: [u64; 4]| -> Vec<u64> {
        LOOPS
            .iter()
            .zip(add)
            .map(|(n, a)| u64::from(*n) + a)
            .collect()
    };
    assert_eq!(miscounted(&counts([9, 9, 9, 9])), "");
    assert!(miscounted(&counts([9, 9, 9, 10])).contains("1000010 of 1000000"));
    assert!(!miscounted(&[0; 4]).is_empty());
    assert!(!miscounted(&counts([5000; 4])).is_empty());
}

fn put(root: &Path, path: &str, bytes: &[u8]) {
    let file = root.join(path);
    std::fs::create_dir_all(file.parent().expect("inside the root")).expect("directory");
    std::fs::write(file, bytes).expect("file");
}

#[test]
fn one_core_with_speclockmap_is_found() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let host = Host::at(dir.path());
    assert_eq!(spec_lock_map(&host, Ok(0)).result, Outcome::Ok);
    assert_eq!(spec_lock_map(&host, Ok(3)).result, Outcome::Fail);
    let lost = spec_lock_map(&host, Err(CounterError::Lost));
    assert_eq!(lost.result, Outcome::Skipped);
    put(dir.path(), "sys/devices/system/cpu/online", b"0-1");
    for (cpu, value) in [(0, SPEC_LOCK_MAP_OFF), (1, 0)] {
        // Sparse: the register lies at its number.
        let path = dir.path().join(format!("dev/cpu/{cpu}/msr"));
        put(dir.path(), &format!("dev/cpu/{cpu}/msr"), b"");
        let file = std::fs::File::options()
            .write(true)
            .open(path)
            .expect("file");
        use std::os::unix::fs::FileExt;
        file.write_all_at(&u64::to_le_bytes(value), SPEC_LOCK_MAP_MSR.into())
            .expect("sparse file");
    }
    let found = spec_lock_map(&host, Ok(0));
    assert_eq!(found.result, Outcome::Fail);
    assert!(found.detail.contains("[1]"), "{}", found.detail);
}

#[test]
fn settings_are_judged() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let host = Host::at(dir.path());
    assert_eq!(freeze_on_smi(&host).result, Outcome::Skipped);
    assert_eq!(paranoid(&host).result, Outcome::Fail);
    put(dir.path(), "sys/devices/cpu/freeze_on_smi", b"0\n");
    put(dir.path(), "proc/sys/kernel/perf_event_paranoid", b"1\n");
    assert_eq!(freeze_on_smi(&host).result, Outcome::Warn);
    assert_eq!(paranoid(&host).result, Outcome::Ok);
    put(dir.path(), "sys/devices/cpu/freeze_on_smi", b"1\n");
    assert_eq!(freeze_on_smi(&host).result, Outcome::Ok);
}

#[test]
fn an_unknown_cpu_ends_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let id = CpuId {
        vendor: *b"GenuineIntel",
        family: 15,
        model: 4,
        in_vm: false,
    };
    let all = look(&Host::at(dir.path()), &id, 0);
    assert_eq!(all[1].result, Outcome::Fail);
    assert!(all[1].detail.contains("family 0xf model 0x4"));
}
