use super::*;
use crate::memory::FRAME;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 16 << 20;

fn machine() -> SavedMachine {
    let mut cpu = CpuState::at_reset();
    cpu.count = 123_456_789;
    SavedMachine {
        about: About {
            vm_name: "demo".into(),
            vm_uuid: "0d2f".into(),
            ram_bytes: RAM,
            engine: SavedEngine {
                name: "soft".into(),
                counts: "instructions".into(),
                cpuid_hash: u64::MAX,
                host_math: 7,
            },
            boot_digest: 42,
            position: Position {
                count: cpu.count,
                rip: cpu.rip,
                rcx: 0,
            },
            config: "memory = \"16MiB\"\n".into(),
        },
        state: State {
            cpu,
            clock: ClockBase {
                at_count: 5,
                ns: 99,
                ns_per_count: 1,
            },
            board: (0..=255).collect(),
            outputs: 17,
        },
    }
}

/// RAM with runs of frames that compress and frames that do not, far apart.
fn filled() -> GuestRam {
    let ram = GuestRam::new(RAM).unwrap();
    let mut x = 1u64;
    for frame in [0, 1, 2, 40, 41, 3000, RAM / FRAME - 1] {
        for word in 0..FRAME / 8 {
            x = x
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let value = if frame % 2 == 0 { x } else { word };
            ram.memory()
                .write_obj(value, GuestAddress(frame * FRAME + word * 8))
                .unwrap();
        }
    }
    // Touched, but zero: not in the file.
    ram.memory()
        .write_obj(0u8, GuestAddress(0x10_0000))
        .unwrap();
    ram
}

fn saved(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_to(&mut bytes, &machine(), ram, &mut |_| {}).unwrap();
    bytes
}

fn read(mut bytes: &[u8], ram: &GuestRam) -> Result<SavedMachine, LoadError> {
    read_from(&mut bytes, ram, &mut |_| {})
}

#[test]
fn a_saved_machine_comes_back_whole() {
    let ram = filled();
    let bytes = saved(&ram);
    assert_eq!(bytes, saved(&ram), "the same state is the same file");
    let other = GuestRam::new(RAM).unwrap();
    other
        .memory()
        .write_obj(1u8, GuestAddress(0x20_0000))
        .unwrap();
    assert_eq!(read(&bytes, &other).unwrap(), machine());
    assert_eq!(other.hash(), ram.hash());
    assert_eq!(read_about(&mut bytes.as_slice()).unwrap(), machine().about);
}

#[test]
fn many_chunks_keep_their_order_and_progress_ends_at_all() {
    let ram = GuestRam::new(64 << 20).unwrap();
    for frame in 0..ram.size() / FRAME {
        ram.memory()
            .write_obj(frame + 1, GuestAddress(frame * FRAME))
            .unwrap();
    }
    let mut machine = machine();
    machine.about.ram_bytes = ram.size();
    let mut steps = Vec::new();
    let mut bytes = Vec::new();
    write_to(&mut bytes, &machine, &ram, &mut |p| steps.push(p.done)).unwrap();
    assert!(steps.is_sorted() && steps.len() > 16, "{steps:?}");
    assert_eq!(steps.last(), Some(&ram.size()));
    let other = GuestRam::new(ram.size()).unwrap();
    let mut last = None;
    read_from(&mut bytes.as_slice(), &other, &mut |p| last = Some(p)).unwrap();
    assert_eq!(
        last.map(|p| (p.done, p.total)),
        Some((ram.size(), ram.size()))
    );
    assert_eq!(other.hash(), ram.hash());
}

#[test]
fn truncation_anywhere_is_an_error_and_leaves_no_memory_behind() {
    let bytes = saved(&filled());
    let ram = GuestRam::new(RAM).unwrap();
    let early = (0..2000).chain((2000..bytes.len()).step_by(37));
    for len in early.chain([bytes.len() - 1]) {
        match read(&bytes[..len], &ram) {
            Err(LoadError::Truncated { .. }) => assert!(len >= 8, "{len}"),
            Err(LoadError::NotASavedState) => assert!(len < 8, "{len}"),
            other => panic!("truncated to {len}: {other:?}"),
        }
    }
    assert_eq!(ram.hash(), 0);
}

#[test]
fn other_versions_sizes_and_files_are_told_apart() {
    let mut bytes = saved(&filled());
    let ram = GuestRam::new(RAM).unwrap();
    let big = GuestRam::new(2 * RAM).unwrap();
    let said = read(&bytes, &big).unwrap_err().to_string();
    assert!(
        said.contains("16777216") && said.contains("33554432"),
        "{said}"
    );
    bytes[8] = 9;
    assert!(matches!(
        read(&bytes, &ram),
        Err(LoadError::Version { found: 9 })
    ));
    assert!(matches!(
        read(b"memory = \"512MiB\"", &ram),
        Err(LoadError::NotASavedState)
    ));
    assert!(matches!(
        write_to(&mut Vec::new(), &machine(), &big, &mut |_| {}),
        Err(SaveError::RamSize { .. })
    ));
}

#[test]
fn a_section_that_lies_about_its_length_costs_no_memory() {
    let mut bytes = saved(&filled());
    let ram = GuestRam::new(RAM).unwrap();
    for len in [MAX_ABOUT, MAX_ABOUT + 1, u64::MAX] {
        bytes[16..24].copy_from_slice(&len.to_le_bytes());
        let error = read(&bytes, &ram).unwrap_err();
        assert!(
            matches!(error, LoadError::Truncated { .. } | LoadError::Malformed(_)),
            "{error}"
        );
    }
}

#[test]
fn files_are_whole_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("machine.state");
    let ram = filled();
    let mut wrong = machine();
    wrong.about.ram_bytes = 1;
    assert!(save(&path, &wrong, &ram, &mut |_| {}).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    save(&path, &machine(), &ram, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(load_about(&path).unwrap(), machine().about);
    let other = GuestRam::new(RAM).unwrap();
    assert_eq!(load(&path, &other, &mut |_| {}).unwrap(), machine());
    assert_eq!(other.hash(), ram.hash());

    let mut bytes = std::fs::read(&path).unwrap();
    bytes.push(0);
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(
        load(&path, &other, &mut |_| {}),
        Err(LoadError::TrailingBytes)
    ));
    assert_eq!(other.hash(), 0);
    let nowhere = dir.path().join("none/x");
    assert!(matches!(
        save(&nowhere, &machine(), &ram, &mut |_| {}),
        Err(SaveError::Io(_))
    ));
    assert!(matches!(load_about(&nowhere), Err(LoadError::Io(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any change of a byte is noticed; nothing panics.
    #[test]
    fn damage_is_noticed(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = saved(&filled());
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let ram = GuestRam::new(RAM).unwrap();
        prop_assert!(read(&bytes, &ram).is_err(), "byte {at}");
        prop_assert_eq!(ram.hash(), 0);
    }

    /// A memory section with right checksums and wrong content is an error, never a panic.
    #[test]
    fn hostile_chunks_are_refused(payload in prop::collection::vec(any::<u8>(), 0..200), runs in 0u32..4, first in 0u64..5000, count in 0u32..2000) {
        let mut hostile = runs.to_le_bytes().to_vec();
        for i in 0..runs {
            hostile.extend((first + u64::from(i * count)).to_le_bytes());
            hostile.extend(count.to_le_bytes());
        }
        hostile.extend(payload);
        prop_assert!(chunk::Chunk::decode(&hostile).is_err());
    }

    /// Right checksums around a wrong about or state section: an error or another state, no panic,
    /// and no memory taken because a length says so.
    #[test]
    fn hostile_sections_do_not_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        in_state in any::<bool>(),
        cut in any::<prop::sample::Index>(),
        keep in any::<bool>(),
    ) {
        let mut parts = [
            serde_json::to_vec(&machine().about).unwrap(),
            postcard::to_stdvec(&machine().state).unwrap(),
        ];
        let part = &mut parts[usize::from(in_state)];
        for (at, byte) in edits {
            let at = at.index(part.len());
            part[at] = byte;
        }
        if !keep {
            part.truncate(cut.index(part.len()));
        }
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(&mut bytes).unwrap();
        writer.section(Kind::About, &parts[0]).unwrap();
        writer.section(Kind::State, &parts[1]).unwrap();
        writer.end().unwrap();
        let ram = GuestRam::new(RAM).unwrap();
        if let Ok(read) = read(&bytes, &ram) {
            prop_assert_eq!(read.about.ram_bytes, RAM);
        }
    }
}
