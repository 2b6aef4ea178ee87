use super::*;
use vm_memory::Bytes;

const MIB: u64 = 1 << 20;

fn all_frames(ram: &GuestRam) -> impl Iterator<Item = u64> {
    ram.ranges().flat_map(|r| r.start / FRAME..r.end / FRAME)
}

fn written(ram: &GuestRam) -> Vec<(u64, u64)> {
    ram.take_written()
        .iter()
        .map(|r| (r.start, r.end))
        .collect()
}

#[test]
fn sizes_are_checked() {
    for size in [0, 2 * MIB, 14 * MIB, 17 * MIB, MAX_RAM + RAM_UNIT, u64::MAX] {
        assert!(GuestRam::new(size).is_err(), "{size}");
    }
    assert_eq!(GuestRam::new(16 * MIB).unwrap().size(), 16 * MIB);
}

#[test]
fn ram_above_three_gigabytes_moves_to_four() {
    let ram = GuestRam::new(5 << 30).unwrap();
    let ranges: Vec<_> = ram.ranges().collect();
    assert_eq!(ranges, [0..0xc000_0000, 0x1_0000_0000..0x1_8000_0000]);
    assert_eq!(
        ram.e820()
            .iter()
            .filter(|e| e.kind == E820Kind::Ram)
            .map(|e| e.len)
            .sum::<u64>(),
        (5 << 30) - (MIB - 0x9fc00)
    );
    ram.memory()
        .write_slice(b"high", GuestAddress(0x1_7fff_fffc))
        .unwrap();
    assert!(
        ram.memory()
            .write_slice(b"hole", GuestAddress(0xc000_0000))
            .is_err()
    );
    assert_eq!(written(&ram), [(0x1_7fff_f000, 0x1_8000_0000)]);
}

#[test]
fn writes_are_logged_by_frame_and_reads_are_not() {
    let ram = GuestRam::new(16 * MIB).unwrap();
    assert!(ram.take_written().is_empty());
    let memory = ram.memory();
    memory.write_obj(1u8, GuestAddress(0x5fff)).unwrap();
    memory.write_slice(&[1; 2], GuestAddress(0x2fff)).unwrap();
    memory.write_obj(1u64, GuestAddress(0x4000)).unwrap();
    memory.write_slice(&[], GuestAddress(0x9000)).unwrap();
    let _: u64 = memory.read_obj(GuestAddress(0x8000)).unwrap();
    assert_eq!(written(&ram), [(0x2000, 0x6000)]);
    assert!(ram.take_written().is_empty());
}

#[test]
fn many_separate_writes_stay_a_short_list() {
    let ram = GuestRam::new(16 * MIB).unwrap();
    for round in 0..1000u64 {
        for frame in [3, 7, 100, 9] {
            ram.memory()
                .write_obj(round, GuestAddress(frame * FRAME))
                .unwrap();
        }
    }
    let frames: Vec<_> = ram.take_written().iter().map(|r| r.start / FRAME).collect();
    assert_eq!(frames, [3, 7, 9, 100]);
}

#[test]
fn hash_is_a_function_of_content_and_place() {
    let (a, b) = (
        GuestRam::new(16 * MIB).unwrap(),
        GuestRam::new(16 * MIB).unwrap(),
    );
    assert_eq!(a.hash(), 0);
    a.memory().write_obj(7u32, GuestAddress(0x1234)).unwrap();
    assert_ne!(a.hash(), b.hash());
    // Touched and zero again is the same as never touched.
    b.memory().write_obj(9u32, GuestAddress(0x80_0000)).unwrap();
    b.memory().write_obj(0u32, GuestAddress(0x80_0000)).unwrap();
    assert_eq!(b.hash(), 0);
    // The same frame at another place is another content.
    b.memory().write_obj(7u32, GuestAddress(0x2234)).unwrap();
    assert_ne!(a.hash(), b.hash());
    b.memory().write_obj(0u32, GuestAddress(0x2234)).unwrap();
    b.memory().write_obj(7u32, GuestAddress(0x1234)).unwrap();
    assert_eq!(a.hash(), b.hash());
    assert_eq!(a.hash(), a.hash_frames(all_frames(&a)));
    assert_eq!(a.hash_frames([2, 3, u64::MAX, 1 << 40]), 0);
    // Memory of another size with the same content has the same hash: the header tells them apart.
    assert_eq!(GuestRam::new(32 * MIB).unwrap().hash(), 0);
}

#[test]
fn clear_gives_zeros_and_counts_as_written() {
    let ram = GuestRam::new(5 << 30).unwrap();
    for addr in [0x1000, 0x1_0000_0000] {
        ram.memory().write_obj(1u8, GuestAddress(addr)).unwrap();
    }
    ram.clear().unwrap();
    assert_eq!(ram.hash(), 0);
    assert_eq!(ram.take_written(), ram.ranges().collect::<Vec<_>>());
}
