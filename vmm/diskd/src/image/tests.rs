//! Tests of images and their copies.

use std::os::unix::fs::MetadataExt;

use super::snapshot::{SnapshotError, permitted, take};
use super::*;

fn config(path: &Path) -> DiskConfig {
    DiskConfig {
        name: "d".to_owned(),
        path: path.to_owned(),
        read_only: false,
    }
}

fn image(dir: &Path, size: u64) -> Image {
    let path = dir.join("d.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    Image::open(&config(&path)).unwrap()
}

#[test]
fn bounds_are_checked_and_zero_lengths_are_fine() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 4096);
    image.write(&[1; 512], 4096 - 512).unwrap();
    image.write(&[], 4096).unwrap();
    image.read(&mut [], 4096).unwrap();
    image.trim(0, 0).unwrap();
    image.zero(4096, 0, false).unwrap();
    for offset in [4096 - 511, 4096, u64::MAX, u64::MAX - 511, 1 << 63] {
        assert!(image.write(&[1; 512], offset).is_err(), "{offset}");
        assert!(image.read(&mut [0; 512], offset).is_err(), "{offset}");
        assert!(image.trim(offset, 512).is_err(), "{offset}");
        assert!(image.zero(offset, 512, true).is_err(), "{offset}");
    }
    assert_eq!(
        std::fs::metadata(image.path()).unwrap().len(),
        4096,
        "the file has not grown"
    );
}

#[test]
fn zeroes_and_holes_read_as_zeroes() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 1 << 20);
    image.write(&vec![7; 1 << 20], 0).unwrap();
    image.zero(4096, 4096, false).unwrap();
    image.zero(16384, 100, true).unwrap();
    image.write_zeroes(32768, 70_000).unwrap();
    let mut all = vec![0; 1 << 20];
    image.read(&mut all, 0).unwrap();
    for (at, byte) in all.iter().enumerate() {
        let zeroed = [4096..8192, 16384..16484, 32768..102_768]
            .iter()
            .any(|r| r.contains(&at));
        assert_eq!(*byte, if zeroed { 0 } else { 7 }, "at {at}");
    }
}

#[test]
fn what_cannot_be_served_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Image::open(&config(&dir.path().join("none.img")))
        .err()
        .unwrap();
    assert!(missing.to_string().contains("none.img"), "{missing}");
    assert!(matches!(
        Image::open(&config(dir.path())),
        Err(OpenError::Open { .. })
    ));
    let odd = dir.path().join("odd.img");
    for size in [0, 511, 513] {
        File::create(&odd).unwrap().set_len(size).unwrap();
        assert!(
            matches!(Image::open(&config(&odd)), Err(OpenError::Size { .. })),
            "{size}"
        );
    }
    let held = image(dir.path(), 512);
    assert!(matches!(
        Image::open(&config(held.path())),
        Err(OpenError::Locked { .. })
    ));
}

#[test]
fn a_snapshot_is_the_same_and_keeps_the_holes() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 64 << 20);
    for at in [0, 1 << 20, 33 << 20, (64 << 20) - 5000] {
        image.write(&[9; 5000], at).unwrap();
    }
    let path = dir.path().join("copy.img");
    let info = take(&image, &path).unwrap();
    assert_eq!(info.size, 64 << 20);
    assert_eq!(
        std::fs::read(&path).unwrap(),
        std::fs::read(image.path()).unwrap()
    );
    let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(blocks < 1 << 20, "{blocks} bytes for 20 kB of data");
    assert!(matches!(take(&image, &path), Err(SnapshotError::Exists(_))));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing else is left behind: {left:?}");
}

#[test]
fn snapshots_stay_below_the_allowed_directories() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::create_dir_all(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
    let allowed = [inside.clone()];
    permitted(&inside.join("a"), &allowed).unwrap();
    for path in [
        outside.join("a"),
        inside.join("../out/a"),
        inside.join("link/a"),
    ] {
        assert!(permitted(&path, &allowed).is_err(), "{path:?}");
    }
    assert!(matches!(
        permitted(Path::new("a"), &allowed),
        Err(SnapshotError::Relative(_))
    ));
    assert!(permitted(&inside.join("a"), &[]).is_err());
}
