//! A hasher for small integer keys that are not under an adversary's choice to any harm: a guest
//! that makes them collide slows down only itself. Fixed, so that nothing depends on the host.

use std::hash::{BuildHasherDefault, Hasher};

/// Multiplies and folds.
#[derive(Clone, Copy, Debug, Default)]
pub struct IntHasher(u64);

impl Hasher for IntHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }

    fn write_u64(&mut self, v: u64) {
        let x = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ x >> 32;
    }
}

/// A map from integers, for lookups only: its order means nothing.
pub type IntMap<V> = std::collections::HashMap<u64, V, BuildHasherDefault<IntHasher>>;
