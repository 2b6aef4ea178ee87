//! Images are built here, small and whole, and loaded; then cut and damaged everywhere.

mod images;
mod layout;

use super::*;
use images::{FlatAddresses, bzimage, elf, flat_multiboot, multiboot_elf, packed, pvh_elf};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn ram() -> GuestRam {
    GuestRam::new(64 * MIB).unwrap()
}

fn spec(kernel: Vec<u8>) -> BootSpec {
    BootSpec {
        kernel,
        initrd: None,
        cmdline: "console=ttyS0 quiet".into(),
        mode: BootMode::Auto,
    }
}

fn boot_sector(len: usize) -> Vec<u8> {
    let mut image = vec![0x90; len];
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image
}

/// One image of each kind, with the mode that its content says.
fn one_of_each() -> Vec<(BootMode, Vec<u8>)> {
    vec![
        (BootMode::Bzimage, bzimage(0x20f, 1, &[0xf4; 700])),
        (BootMode::Bzimage, bzimage(0x205, 0, &[0xf4; 700])),
        (BootMode::Pvh, pvh_elf(64)),
        (BootMode::Pvh, pvh_elf(32)),
        (BootMode::Multiboot, multiboot_elf(32)),
        (BootMode::Multiboot, multiboot_elf(64)),
        (
            BootMode::Multiboot,
            flat_multiboot(FlatAddresses::default()),
        ),
        (BootMode::Bootsector, boot_sector(512)),
    ]
}

#[test]
fn content_says_how_to_boot() {
    for (mode, kernel) in one_of_each() {
        let mut spec = spec(kernel);
        if mode == BootMode::Bootsector {
            spec.cmdline.clear();
        }
        assert_eq!(spec.detect().unwrap(), mode);
        let auto = load(&ram(), &spec).unwrap();
        spec.mode = mode;
        assert_eq!(load(&ram(), &spec).unwrap(), auto);
        assert_eq!(auto.count, 0);
        assert_eq!(auto.rflags, 2, "interrupts off");
        for other in [BootMode::Bzimage, BootMode::Pvh, BootMode::Bootsector] {
            if other != mode {
                spec.mode = other;
                assert!(load(&ram(), &spec).is_err(), "{mode} as {other}");
            }
        }
    }
}

#[test]
fn the_same_spec_gives_the_same_memory() {
    for (mode, kernel) in one_of_each() {
        let mut spec = spec(kernel);
        if mode == BootMode::Bootsector {
            spec.cmdline.clear();
        } else {
            spec.initrd = Some(vec![7; 5000]);
        }
        let (a, b) = (ram(), ram());
        assert_eq!(load(&a, &spec).unwrap(), load(&b, &spec).unwrap());
        assert_eq!(a.hash(), b.hash());
        assert_ne!(a.hash(), 0);
        // All that was written is reported, so that an engine drops what it derived from it.
        let written = a.take_written();
        let frames = written.iter().flat_map(|r| r.start / 4096..r.end / 4096);
        assert_eq!(a.hash_frames(frames), a.hash());
    }
}

#[test]
fn truncated_images_are_errors_at_every_length() {
    let ram = ram();
    for (mode, kernel) in one_of_each() {
        for len in 0..kernel.len() {
            let mut spec = spec(kernel[..len].to_vec());
            spec.cmdline.clear();
            // The header counts a bzImage's code in units of 16 bytes, so less cannot be seen.
            let slack = if mode == BootMode::Bzimage { 15 } else { 0 };
            let unseen = len + slack >= kernel.len();
            assert!(load(&ram, &spec).is_err() || unseen, "{mode} cut to {len}");
            spec.mode = mode;
            assert!(load(&ram, &spec).is_err() || unseen, "{mode} cut to {len}");
        }
    }
}

#[test]
fn a_packed_kernel_boots_by_pvh_like_the_unpacked_one() {
    let mut packed = spec(packed(&pvh_elf(64)));
    assert_eq!(packed.detect().unwrap(), BootMode::Bzimage);
    packed.mode = BootMode::Pvh;
    let (a, b) = (ram(), ram());
    let unpacked = load(&b, &spec(pvh_elf(64))).unwrap();
    assert_eq!(load(&a, &packed).unwrap(), unpacked);
    assert_eq!(a.hash(), b.hash());
    for len in 0..packed.kernel.len() {
        let mut cut = packed.clone();
        cut.kernel.truncate(len);
        assert!(load(&a, &cut).is_err(), "cut to {len}");
    }
    // A wrong length, and another compression.
    let (mut wrong, len) = (packed.clone(), packed.kernel.len());
    wrong.kernel[len - 4] ^= 1;
    assert!(matches!(load(&a, &wrong), Err(BootError::Malformed(_))));
    packed.kernel[1024 + 32] ^= 1;
    let said = load(&a, &packed).unwrap_err().to_string();
    assert!(said.contains("LZ4"), "{said}");
}

#[test]
fn what_is_no_kernel_is_named() {
    let cases: [(&[u8], &str); 8] = [
        (b"", "empty"),
        (&[0; 4096], "zero bytes"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"hello", "too short"),
        (&[b'a'; 600], "a text file"),
        (b"070701", "cpio"),
        (b"!<arch>\ndebian-binary", "Debian package"),
        (&[0xf7; 600], "no known kind"),
    ];
    for (bytes, words) in cases {
        let said = load(&ram(), &spec(bytes.to_vec())).unwrap_err().to_string();
        assert!(said.contains(words), "{words}: {said}");
    }
    // An ELF for another machine, and one that nobody can enter.
    let mut arm = pvh_elf(64);
    arm[18..20].copy_from_slice(&183u16.to_le_bytes());
    assert!(matches!(
        load(&ram(), &spec(arm)),
        Err(BootError::NotAKernel { .. })
    ));
    let plain = elf(64, 0x10_0000, &[0xf4; 16], None);
    let said = load(&ram(), &spec(plain)).unwrap_err().to_string();
    assert!(
        said.contains("PVH note") && said.contains("Multiboot"),
        "{said}"
    );
}

#[test]
fn kernels_that_do_not_fit_say_how_much_they_need() {
    let small = GuestRam::new(16 * MIB).unwrap();
    // Wants 0x0100_0000 and 32 MiB from there.
    let kernel = bzimage(0x20f, 1, &[0xf4; 700]);
    let said = load(&small, &spec(kernel)).unwrap_err().to_string();
    assert!(
        said.contains("0x3000000") && said.contains("0x1000000"),
        "{said}"
    );
    let high = elf(64, 0xffff_ffff_ffff_f000, &[0xf4; 16], Some(0x1000));
    let said = load(&small, &spec(high)).unwrap_err();
    assert!(matches!(said, BootError::KernelTooBig { .. }), "{said}");
    assert!(load(&small, &spec(vec![0; 0])).is_err());
}

#[test]
fn initrds_that_do_not_fit_are_refused() {
    for (mode, kernel) in one_of_each() {
        let mut spec = spec(kernel);
        spec.initrd = Some(vec![1; 63 * MIB as usize]);
        let error = load(&ram(), &spec).unwrap_err();
        match mode {
            BootMode::Bootsector => assert!(matches!(error, BootError::WrongMode { .. })),
            _ => assert!(
                matches!(error, BootError::InitrdTooBig { .. }),
                "{mode}: {error}"
            ),
        }
    }
}

#[test]
fn command_lines_are_bounded_by_the_kernel() {
    let mut spec = spec(bzimage(0x20f, 1, &[0xf4; 700]));
    spec.cmdline = "x".repeat(2048);
    let said = load(&ram(), &spec).unwrap_err().to_string();
    assert!(said.contains("2048") && said.contains("2047"), "{said}");
    spec.cmdline.pop();
    assert!(load(&ram(), &spec).is_ok());
    spec.cmdline = "a\0b".into();
    assert!(matches!(load(&ram(), &spec), Err(BootError::CmdlineZero)));
    spec.cmdline = "x".repeat(3000);
    spec.kernel = pvh_elf(64);
    assert!(matches!(
        load(&ram(), &spec),
        Err(BootError::CmdlineTooLong { .. })
    ));
}

#[test]
fn old_and_odd_bzimages_are_refused() {
    let old = bzimage(0x200, 0, &[0xf4; 700]);
    let said = load(&ram(), &spec(old)).unwrap_err().to_string();
    assert!(said.contains("2.00"), "{said}");
    let mut low = bzimage(0x20f, 1, &[0xf4; 700]);
    low[0x211] = 0;
    assert!(matches!(
        load(&ram(), &spec(low)),
        Err(BootError::Unsupported(_))
    ));
}

#[test]
fn digests_tell_everything_apart() {
    let base = spec(vec![1, 2]);
    let mut others = [base.clone(), base.clone(), base.clone(), base.clone()];
    others[0].kernel.push(3);
    others[1].initrd = Some(Vec::new());
    others[2].cmdline.push('x');
    others[3].mode = BootMode::Pvh;
    for other in &others {
        assert_ne!(other.digest(), base.digest(), "{other:?}");
    }
    assert_eq!(base.clone().digest(), base.digest());
}

#[test]
fn files_are_read_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("k");
    std::fs::write(&kernel, pvh_elf(64)).unwrap();
    let spec = BootSpec::from_files(&kernel, None, "a b", BootMode::Auto).unwrap();
    assert_eq!((spec.cmdline.as_str(), &spec.kernel), ("a b", &pvh_elf(64)));
    let missing = dir.path().join("initrd");
    let said = BootSpec::from_files(&kernel, Some(&missing), "", BootMode::Auto)
        .unwrap_err()
        .to_string();
    assert!(said.contains("initrd"), "{said}");
    let huge = std::fs::File::create(&missing).unwrap();
    huge.set_len(2 << 30).unwrap();
    let error = BootSpec::from_files(&kernel, Some(&missing), "", BootMode::Auto);
    assert!(matches!(error, Err(BootError::FileTooBig { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Damaged headers give errors or a state, never a panic, and never a write outside RAM.
    #[test]
    fn mutated_images_do_not_panic(
        which in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 4]>(), 1..=4usize), 1..5),
        initrd in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
        forced in any::<bool>(),
    ) {
        let mut images = one_of_each();
        images.push((BootMode::Pvh, packed(&pvh_elf(64))));
        let (mode, mut kernel) = images[which.index(images.len())].clone();
        for (at, bytes, len) in edits {
            let at = at.index(kernel.len());
            let len = len.min(kernel.len() - at);
            kernel[at..at + len].copy_from_slice(&bytes[..len]);
        }
        let mut spec = spec(kernel);
        spec.initrd = initrd;
        if forced {
            spec.mode = mode;
        }
        let _ = load(&ram(), &spec);
    }

    /// Fields of a bzImage's and an ELF's headers with values that people attack with.
    #[test]
    fn hostile_fields_do_not_panic(
        which in any::<prop::sample::Index>(),
        at in 0..0x300usize,
        value in prop::sample::select(vec![0u64, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX, u64::MAX - 4095]),
        width in prop::sample::select(vec![1usize, 2, 4, 8]),
    ) {
        let mut images = one_of_each();
        images.push((BootMode::Pvh, packed(&pvh_elf(64))));
        let (mode, mut kernel) = images[which.index(images.len())].clone();
        let at = at.min(kernel.len() - width);
        kernel[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        let mut spec = spec(kernel);
        let _ = load(&ram(), &spec);
        spec.mode = mode;
        let _ = load(&ram(), &spec);
    }
}
