//! Loads, stores and instruction fetch: the fast path through the software TLB, and the slow path
//! through the page walk.
//!
//! Addresses are linear: the caller has added the segment base and checked the limit
//! (`segments.rs`). An access that fails has changed nothing but accessed bits.

#![allow(unsafe_code)]

use std::ops::Range;

use engine::{Boundary, PendingRead};

pub use engine::bits::is_canonical;

use crate::control::cr0;
use crate::cpu::{CodeMode, Cpu, attention, seg};
use crate::flags::AC;
use crate::paging::{MUST_STEP, Paging, Scheme};
use crate::phys::{Frame, PAGE, PAGE_MASK, flag};
use crate::stop::{Stop, StopReason, vector};
use crate::tlb::{Current, Entry, Key, Kind, Mode, Tlb, slot};
use crate::width::Width;

/// TLB and translation state.
#[repr(C)]
pub struct Mmu {
    /// Tables of the current address space and rights; follows CPL, RFLAGS.AC and the control
    /// registers (`Cpu::update_translation`).
    pub current: Current,
    /// Rights of ordinary accesses.
    pub mode: Mode,
    /// Rights of accesses to system structures, whatever the CPL (SDM vol. 3, 4.6.1).
    pub system: Mode,
    /// Linear addresses are truncated to these bits.
    pub linear_mask: u64,
    pub paging: Paging,
    /// #AC is on: CPL 3, CR0.AM and RFLAGS.AC. Then no table is used.
    pub align: bool,
    /// A data breakpoint is enabled (see `debug`).
    pub watching: bool,
    /// Data breakpoints that the instruction has hit, as in DR6.
    pub watch_hits: u64,
    pub tlb: Tlb,
}

impl Default for Mmu {
    fn default() -> Self {
        let tlb = Tlb::new();
        Self {
            current: tlb.tables(Mode::Supervisor),
            mode: Mode::Supervisor,
            system: Mode::Supervisor,
            linear_mask: u64::from(u32::MAX),
            paging: Paging::default(),
            align: false,
            watching: false,
            watch_hits: 0,
            tlb,
        }
    }
}

/// The page that holds the code at a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePage {
    /// Guest-physical address of the 4 KiB page.
    pub gpa: u64,
}

/// Host address of a good hit in a table, or None.
#[inline(always)]
fn hit(table: *const Entry, linear: u64, len: usize) -> Option<*mut u8> {
    let last = linear.wrapping_add(len as u64 - 1);
    // SAFETY: `slot` is below SLOTS, the length of every table; tables live as long as the TLB,
    // beside whose owner `Current` lies.
    let e = unsafe { &*table.add(slot(linear)) };
    // The tag of the slot of the first byte is only ever that of a page with the first byte's slot,
    // so this also fails for an access that straddles pages.
    (e.tag == last & PAGE_MASK).then(|| linear.wrapping_add(e.addend) as *mut u8)
}

impl Cpu {
    /// Loads a value.
    #[inline(always)]
    pub fn load<T: Width>(&mut self, linear: u64) -> Result<T, Stop> {
        match hit(self.mmu.current.read, linear, T::BYTES) {
            // SAFETY: a read entry leads to a mapped page of RAM, and the access lies within it.
            Some(p) => Ok(unsafe { p.cast::<T>().read_unaligned() }),
            None => self.load_slow(self.mmu.mode, linear),
        }
    }

    /// Stores a value.
    #[inline(always)]
    pub fn store<T: Width>(&mut self, linear: u64, v: T) -> Result<(), Stop> {
        match hit(self.mmu.current.write, linear, T::BYTES) {
            Some(p) => {
                // SAFETY: as for `load`; a write entry leads to a page that nothing is cached of.
                unsafe { p.cast::<T>().write_unaligned(v) };
                Ok(())
            }
            None => self.store_slow(self.mmu.mode, linear, v),
        }
    }

    /// Loads for a read-modify-write: faults as a write does. The store that follows cannot stop.
    #[inline(always)]
    pub fn load_rmw<T: Width>(&mut self, linear: u64) -> Result<T, Stop> {
        match hit(self.mmu.current.write, linear, T::BYTES) {
            // SAFETY: as for `store`.
            Some(p) => Ok(unsafe { p.cast::<T>().read_unaligned() }),
            None => {
                self.prepare_store(linear, T::BYTES as u64)?;
                self.load(linear)
            }
        }
    }

    /// Makes sure that a store of `len` bytes at `linear` will not stop.
    #[inline(always)]
    pub fn prepare_store(&mut self, linear: u64, len: u64) -> Result<(), Stop> {
        if hit(self.mmu.current.write, linear, len as usize).is_some() {
            return Ok(());
        }
        self.prepare_slow(self.mmu.mode, linear, len)
    }

    /// Loads `out.len()` bytes (at least 1).
    pub fn load_bytes(&mut self, linear: u64, out: &mut [u8]) -> Result<(), Stop> {
        self.load_bytes_as(self.mmu.mode, linear, out, true)
    }

    /// Stores `bytes`, at most a page, all or none of them.
    pub fn store_bytes(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.store_bytes_as(self.mmu.mode, linear, bytes)
    }

    /// Loads from a system structure (descriptor tables, TSS), with its rights. Outside RAM it reads
    /// as all ones: there is nobody to ask while an interrupt is delivered.
    pub fn load_sys<T: Width>(&mut self, linear: u64) -> Result<T, Stop> {
        let mut bytes = [0; 16];
        self.load_bytes_as(self.mmu.system, linear, &mut bytes[..T::BYTES], false)?;
        Ok(T::from_le(&bytes))
    }

    /// Stores with a system structure's rights.
    pub fn store_sys<T: Width>(&mut self, linear: u64, v: T) -> Result<(), Stop> {
        self.store_slow(self.mmu.system, linear, v)
    }

    /// Stores with given rights; after `prepare_slow_or_hit` it cannot stop.
    pub(crate) fn store_as<T: Width>(&mut self, mode: Mode, linear: u64, v: T) -> Result<(), Stop> {
        match hit(self.mmu.tlb.tables(mode).write, linear, T::BYTES) {
            Some(p) => {
                // SAFETY: as for `store`.
                unsafe { p.cast::<T>().write_unaligned(v) };
                Ok(())
            }
            None => self.store_slow(mode, linear, v),
        }
    }

    /// `prepare_store` with given rights.
    pub(crate) fn prepare_slow_or_hit(
        &mut self,
        mode: Mode,
        linear: u64,
        len: u64,
    ) -> Result<(), Stop> {
        if hit(self.mmu.tlb.tables(mode).write, linear, len as usize).is_some() {
            return Ok(());
        }
        self.prepare_slow(mode, linear, len)
    }

    /// The guest-physical address of code at a linear address (CS base added), if the TLB has it.
    #[inline(always)]
    pub fn fetch_known(&self, linear: u64) -> Option<u64> {
        // SAFETY: as in `hit`.
        let e = unsafe { &*self.mmu.current.fetch.add(slot(linear)) };
        (e.tag == linear & PAGE_MASK).then(|| linear.wrapping_add(e.addend))
    }

    /// Translates the linear address of code for execution: #GP(0) if not canonical, #PF.
    #[inline(always)]
    pub fn fetch_page(&mut self, linear: u64) -> Result<CodePage, Stop> {
        match self.fetch_known(linear) {
            Some(gpa) => Ok(CodePage {
                gpa: gpa & PAGE_MASK,
            }),
            None => self.fetch_slow(linear),
        }
    }

    /// The host address for a bulk access of up to `max` bytes at `linear`, upwards, and how many
    /// of them are good, within one page: RAM, with permission, for writes without flags that call
    /// for care. None: go element by element.
    pub fn bulk(&mut self, linear: u64, max: u64, write: bool) -> Option<(*mut u8, u64)> {
        let table = if write {
            self.mmu.current.write
        } else {
            self.mmu.current.read
        };
        hit(table, linear, 1).map(|p| (p, max.min(PAGE - linear % PAGE)))
    }

    /// Recomputes what translation depends on: CPL, RFLAGS.AC, CR0, CR3, CR4, EFER, code mode.
    pub fn update_translation(&mut self) {
        let pg = self.cr0 & 1 << 31 != 0;
        let p = Paging {
            scheme: if !pg {
                Scheme::Off
            } else if self.msrs.efer & 1 << 10 != 0 {
                Scheme::Long
            } else if self.cr4 & 1 << 5 != 0 {
                Scheme::Pae
            } else {
                Scheme::Legacy
            },
            cr3: if pg { self.cr3 } else { 0 },
            write_protect: self.cr0 & 1 << 16 != 0,
            pse: self.cr4 & 1 << 4 != 0,
            nx: self.msrs.efer & 1 << 11 != 0,
            smep: self.cr4 & 1 << 20 != 0,
            smap: self.cr4 & 1 << 21 != 0,
        };
        self.mmu.paging = p;
        self.mmu.tlb.select(Key {
            cr3: p.cr3,
            bits: p.bits(),
        });
        self.update_rights();
    }

    /// As `update_translation`, when only CPL, RFLAGS.AC or the code mode may have changed.
    pub fn update_rights(&mut self) {
        let smap = self.mmu.paging.smap;
        self.mmu.system = if smap {
            Mode::SupervisorSmap
        } else {
            Mode::Supervisor
        };
        self.mmu.mode = if self.cpl == 3 {
            Mode::User
        } else if smap && !self.control_flag(AC) {
            Mode::SupervisorSmap
        } else {
            Mode::Supervisor
        };
        self.mmu.linear_mask = if self.code_mode == CodeMode::Bits64 {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        self.mmu.align = self.cpl == 3 && self.cr0 & cr0::AM != 0 && self.control_flag(AC);
        self.mmu.current = if self.mmu.align {
            self.mmu.tlb.no_tables(self.mmu.mode)
        } else {
            self.mmu.tlb.tables(self.mmu.mode)
        };
    }

    /// Linear page of the code that is running.
    pub(crate) fn running_page(&self) -> u64 {
        if self.code_mode == CodeMode::Bits64 {
            self.rip & PAGE_MASK
        } else {
            self.seg[usize::from(seg::CS)].base.wrapping_add(self.rip) & 0xffff_f000
        }
    }

    /// Memory was changed from outside: drops translations derived from it, and puts decoded code
    /// in it into `phys.written_code`.
    pub fn memory_written(&mut self, range: Range<u64>) {
        let mut gpa = range.start & PAGE_MASK;
        while gpa < range.end {
            if let Some(frame) = self.phys.frame(gpa) {
                let flags = self.phys.flags(frame);
                if flags & flag::TABLE != 0 {
                    self.forget_table(frame);
                }
                if flags & flag::CODE != 0 {
                    let start = range.start.max(gpa);
                    let end = range.end.min(gpa + PAGE);
                    self.code_written(start..end);
                }
            }
            gpa += PAGE;
        }
    }

    /// Marks the bytes at `gpa` (within one page) as decoded: stores to them from now on go into
    /// `phys.written_code`, and raise `StopReason::Step` unless stepping. Marking is by lines of 64
    /// bytes, so that data beside code stay cheap.
    pub fn mark_code(&mut self, gpa: u64, len: u64) {
        if let Some(frame) = self.phys.frame(gpa) {
            self.phys.note_code(frame, gpa % PAGE, len);
            if self.phys.flags(frame) & flag::CODE == 0 {
                self.watch(frame, flag::CODE);
            }
        }
    }

    /// Frames that the vCPU wrote since the last call, ascending.
    pub fn take_dirty(&mut self) -> Vec<u64> {
        self.mmu.tlb.drop_writes();
        self.phys.take_dirty()
    }

    fn code_written(&mut self, range: Range<u64>) {
        self.phys.written_code.push(range);
        self.attention |= attention::CODE;
    }
}

// The slow path.
impl Cpu {
    /// Checks the address and translates it.
    fn locate(&mut self, mode: Mode, kind: Kind, linear: u64) -> Result<u64, Stop> {
        if self.mmu.paging.scheme == Scheme::Long && !is_canonical(linear) {
            return Err(self.stop_for(StopReason::NonCanonical));
        }
        match self.translate(mode, kind, linear) {
            Err(MUST_STEP) => Err(self.stop_for(StopReason::Step)),
            Err(error) => Err(self.raise_page_fault(linear, error)),
            Ok(gpa) => Ok(gpa),
        }
    }

    /// The address of the page after that of `linear`.
    fn next_page(&self, linear: u64) -> u64 {
        (linear & PAGE_MASK).wrapping_add(PAGE) & self.mmu.linear_mask
    }

    #[cold]
    fn fetch_slow(&mut self, linear: u64) -> Result<CodePage, Stop> {
        let gpa = self.locate(self.mmu.mode, Kind::Fetch, linear)? & PAGE_MASK;
        let addend = gpa.wrapping_sub(linear & PAGE_MASK);
        self.mmu
            .tlb
            .fill(self.mmu.mode, Kind::Fetch, linear, addend);
        Ok(CodePage { gpa })
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow<T: Width>(&mut self, mode: Mode, linear: u64) -> Result<T, Stop> {
        self.check_alignment(mode, linear, T::BYTES as u64)?;
        let mut bytes = [0; 16];
        self.load_bytes_as(mode, linear, &mut bytes[..T::BYTES], true)?;
        Ok(T::from_le(&bytes))
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow<T: Width>(
        &mut self,
        mode: Mode,
        linear: u64,
        v: T,
    ) -> Result<(), Stop> {
        self.check_alignment(mode, linear, T::BYTES as u64)?;
        let mut bytes = [0; 16];
        v.write_le(&mut bytes);
        let bytes = &bytes[..T::BYTES];
        self.store_bytes_as(mode, linear, bytes)
    }

    /// Stores bytes within one page, whose address was translated.
    fn store_located(&mut self, mode: Mode, linear: u64, gpa: u64, bytes: &[u8]) {
        match self.phys.frame(gpa) {
            Some(frame) => {
                // A store to a page table may have changed the translation that led here.
                let table = self.phys.flags(frame) & flag::TABLE != 0;
                self.store_ram(frame, gpa, bytes);
                if self.mmu.watching && self.is_watched_page(linear) {
                    self.watch_access(Kind::Write, linear, bytes.len() as u64);
                } else if !table {
                    self.cache_write(mode, linear, frame);
                }
            }
            None => self.store_outside(gpa, bytes),
        }
    }

    /// #AC for an operand of 2, 4 or 8 bytes that is not aligned, while that is checked
    /// (SDM vol. 3, 6.15, interrupt 17). Operands of 16 bytes have their own rules.
    fn check_alignment(&mut self, mode: Mode, linear: u64, len: u64) -> Result<(), Stop> {
        let bad = matches!(len, 2 | 4 | 8) && !linear.is_multiple_of(len);
        if self.mmu.align && mode == Mode::User && bad {
            return Err(self.misaligned(linear));
        }
        Ok(())
    }

    /// #AC, if the address is one at all.
    #[cold]
    pub fn misaligned(&mut self, linear: u64) -> Stop {
        if self.mmu.paging.scheme == Scheme::Long && !is_canonical(linear) {
            return self.stop_for(StopReason::NonCanonical);
        }
        self.raise(vector::AC, Some(0))
    }

    /// Loads bytes page by page; `ask` for those outside RAM.
    pub(crate) fn load_bytes_as(
        &mut self,
        mode: Mode,
        linear: u64,
        out: &mut [u8],
        ask: bool,
    ) -> Result<(), Stop> {
        let mut at = linear;
        let mut rest = out;
        while !rest.is_empty() {
            let n = rest.len().min((PAGE - at % PAGE) as usize);
            let (part, tail) = rest.split_at_mut(n);
            self.load_part(mode, at, part, ask)?;
            rest = tail;
            at = self.next_page(at);
        }
        Ok(())
    }

    /// Loads bytes within one page.
    fn load_part(
        &mut self,
        mode: Mode,
        linear: u64,
        out: &mut [u8],
        ask: bool,
    ) -> Result<(), Stop> {
        if let Some(addend) = self.mmu.tlb.lookup(mode, Kind::Read, linear) {
            let from = linear.wrapping_add(addend) as *const u8;
            // SAFETY: a read entry leads to a page of RAM, in which the bytes lie.
            unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
            return Ok(());
        }
        let gpa = self.locate(mode, Kind::Read, linear)?;
        let Some(frame) = self.phys.frame(gpa) else {
            if !ask {
                out.fill(0xff);
                return Ok(());
            }
            return self.load_outside(gpa, out);
        };
        // SAFETY: the bytes lie within the frame, since they lie within one page.
        unsafe {
            let from = frame.host.add((gpa % PAGE) as usize);
            std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len());
        }
        if self.mmu.watching && self.is_watched_page(linear) {
            self.watch_access(Kind::Read, linear, out.len() as u64);
            return Ok(());
        }
        let addend = (frame.host as u64).wrapping_sub(linear & PAGE_MASK);
        self.mmu.tlb.fill(mode, Kind::Read, linear, addend);
        Ok(())
    }

    /// Loads from outside RAM, in naturally aligned pieces.
    fn load_outside(&mut self, gpa: u64, out: &mut [u8]) -> Result<(), Stop> {
        for (addr, at, size) in pieces(gpa, out.len()) {
            let value = self.external_read(PendingRead::Mmio {
                addr,
                size: size as u8,
            })?;
            out[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        Ok(())
    }

    /// See `prepare_store`.
    #[cold]
    #[inline(never)]
    pub(crate) fn prepare_slow(&mut self, mode: Mode, linear: u64, len: u64) -> Result<(), Stop> {
        self.check_alignment(mode, linear, len)?;
        self.locate_store(mode, linear, len)?;
        Ok(())
    }

    /// Translates a store of `len` bytes, at most a page: the physical addresses of its parts in the
    /// one or two pages that it touches. Everything that can stop it is checked.
    fn locate_store(&mut self, mode: Mode, linear: u64, len: u64) -> Result<[u64; 2], Stop> {
        let first = len.min(PAGE - linear % PAGE);
        let mut parts = [self.locate_part(mode, linear, first)?, 0];
        if first < len {
            parts[1] = self.locate_part(mode, self.next_page(linear), len - first)?;
        }
        Ok(parts)
    }

    fn locate_part(&mut self, mode: Mode, linear: u64, len: u64) -> Result<u64, Stop> {
        let gpa = self.locate(mode, Kind::Write, linear)?;
        if !self.stepping && self.must_step(gpa, len) {
            return Err(self.stop_for(StopReason::Step));
        }
        Ok(gpa)
    }

    /// Whether a store there may end the block that it is in.
    fn must_step(&mut self, gpa: u64, len: u64) -> bool {
        let Some(frame) = self.phys.frame(gpa) else {
            return true;
        };
        let flags = self.phys.flags(frame);
        let offset = gpa % PAGE;
        flags & flag::CODE != 0 && self.phys.has_code(frame, offset, len)
            || flags & flag::TABLE != 0 && self.table_store_meets_code(frame, offset, len)
    }

    /// Stores at most a page of bytes, all or none of them. The first part may change how the second
    /// is mapped; that is too late for this store.
    pub(crate) fn store_bytes_as(
        &mut self,
        mode: Mode,
        linear: u64,
        bytes: &[u8],
    ) -> Result<(), Stop> {
        let parts = self.locate_store(mode, linear, bytes.len() as u64)?;
        let first = bytes.len().min((PAGE - linear % PAGE) as usize);
        self.store_located(mode, linear, parts[0], &bytes[..first]);
        if first < bytes.len() {
            self.store_located(mode, self.next_page(linear), parts[1], &bytes[first..]);
        }
        Ok(())
    }

    /// Every store to RAM that is not a hit in the write TLB: within one frame.
    pub(crate) fn store_ram(&mut self, frame: Frame, gpa: u64, bytes: &[u8]) {
        let flags = self.phys.flags(frame);
        let offset = gpa % PAGE;
        let len = bytes.len() as u64;
        if flags & flag::TABLE != 0 {
            self.table_store(frame, offset, bytes);
        }
        if flags & flag::CODE != 0 && self.phys.has_code(frame, offset, len) {
            self.code_written(gpa..gpa + len);
        }
        self.phys.mark_dirty(frame);
        // SAFETY: the bytes lie within the frame.
        unsafe {
            let to = frame.host.add(offset as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// After a store: lets the next ones to the page take the fast path, if nothing watches it.
    fn cache_write(&mut self, mode: Mode, linear: u64, frame: Frame) {
        let addend = (frame.host as u64).wrapping_sub(linear & PAGE_MASK);
        if self.phys.flags(frame) & flag::WATCHED == 0 {
            self.phys.set_flags(frame, flag::WRITE_CACHED);
            self.mmu.tlb.fill(mode, Kind::Write, linear, addend);
        }
        // What may be written may be read.
        self.mmu.tlb.fill(mode, Kind::Read, linear, addend);
    }

    /// Stores outside RAM, in naturally aligned pieces.
    fn store_outside(&mut self, gpa: u64, bytes: &[u8]) {
        for (addr, at, size) in pieces(gpa, bytes.len()) {
            let mut value = [0; 8];
            value[..size].copy_from_slice(&bytes[at..at + size]);
            self.external_write(Boundary::MmioWrite {
                addr,
                size: size as u8,
                value: u64::from_le_bytes(value),
            });
        }
    }

    /// Writes a page-table entry with accessed and dirty bits added: translations stay as they are.
    pub(crate) fn update_entry(&mut self, gpa: u64, entry: u64) {
        let Some(frame) = self.phys.frame(gpa) else {
            return;
        };
        // Only bits in the first byte change.
        let offset = gpa % PAGE;
        if self.phys.flags(frame) & flag::CODE != 0 && self.phys.has_code(frame, offset, 1) {
            self.code_written(gpa..gpa + 1);
        }
        self.phys.mark_dirty(frame);
        // SAFETY: the byte lies within the frame.
        unsafe { frame.host.add(offset as usize).write(entry as u8) };
    }
}

/// Cuts an access outside RAM into naturally aligned pieces of at most 8 bytes: address, offset in
/// the access, size.
fn pieces(gpa: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let addr = gpa + at as u64;
        let mut size = 8;
        while size > len - at || !addr.is_multiple_of(size as u64) {
            size /= 2;
        }
        let piece = (addr, at, size);
        at += size;
        Some(piece)
    })
}
