//! Runs cases on the host's CPU, in a forked child that can do nothing else.
//!
//! The child shares memory with its parent for inputs and outputs; a byte through a pipe starts a
//! batch and another one ends it. A child that hangs or dies is replaced, and the case it was at
//! counts as skipped.
#![allow(unsafe_code)]

mod child;
mod trampoline;

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use crate::case::{End, Input, Mode, Output};

/// Cases in a batch.
pub const BATCH: usize = 64;
/// Batches that can be on their way.
pub const SLOTS: usize = 2;
/// How long a batch may take before the child counts as hung.
const PATIENCE: Duration = Duration::from_secs(5);

/// What parent and child share.
#[repr(C)]
struct Shared {
    slots: [Slot; SLOTS],
}

#[repr(C)]
struct Slot {
    /// Cases to run, and the first of them.
    len: AtomicU32,
    first: AtomicU32,
    /// The case that the child is at.
    at: AtomicU32,
    inputs: [Input; BATCH],
    outputs: [Output; BATCH],
}

/// The host's CPU.
pub struct Native {
    shared: *mut Shared,
    mode: Mode,
    child: Option<Child>,
}

struct Child {
    pid: Pid,
    link: UnixStream,
}

impl Drop for Child {
    fn drop(&mut self) {
        // The child may be gone already; either way nothing of it is left afterwards.
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

impl Native {
    pub fn new(mode: Mode) -> io::Result<Self> {
        let len = std::num::NonZeroUsize::new(size_of::<Shared>()).ok_or(io::ErrorKind::Other)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let shared = unsafe {
            mmap_anonymous(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
            )?
        };
        Ok(Self {
            shared: shared.cast().as_ptr(),
            mode,
            child: None,
        })
    }

    fn slot(&self, slot: usize) -> *mut Slot {
        // SAFETY: `shared` is mapped as long as `self`, and zero bytes are a `Shared`.
        unsafe { &raw mut (*self.shared).slots[slot % SLOTS] }
    }

    /// The inputs of a slot, to be filled while it is not running.
    pub fn inputs(&mut self, slot: usize) -> &mut [Input; BATCH] {
        // SAFETY: the child reads them only between `start` and `finish`, and both borrow `self`.
        unsafe { &mut (*self.slot(slot)).inputs }
    }

    /// Starts the first `len` cases of a slot.
    pub fn start(&mut self, slot: usize, len: usize) -> io::Result<()> {
        self.send(slot, 0, len)
    }

    fn send(&mut self, slot: usize, first: usize, len: usize) -> io::Result<()> {
        let s = self.slot(slot);
        // SAFETY: as in `slot`; the fields are atomics.
        unsafe {
            (*s).len.store(len as u32, Ordering::Release);
            (*s).first.store(first as u32, Ordering::Release);
            (*s).at.store(first as u32, Ordering::Release);
        }
        if self.child.is_none() {
            self.child = Some(self.spawn()?);
        }
        if let Some(child) = &mut self.child {
            // A child that has died in the meantime: `finish` sees it as well and replaces it.
            match child.link.write_all(&[slot as u8]) {
                Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits for the cases of a slot and gives their outputs.
    pub fn finish(&mut self, slot: usize) -> io::Result<&[Output; BATCH]> {
        loop {
            let Some(child) = &mut self.child else {
                return Err(io::Error::other("nothing was started"));
            };
            let mut byte = [0];
            match child.link.read(&mut byte) {
                Ok(1) if usize::from(byte[0]) == slot => break,
                Ok(1) => continue,
                _ => self.replace(slot)?,
            }
        }
        // SAFETY: as in `inputs`.
        Ok(unsafe { &(*self.slot(slot)).outputs })
    }

    /// The child hung or died in `slot` or the other one: goes on behind the case it was at.
    fn replace(&mut self, slot: usize) -> io::Result<()> {
        self.child = None;
        // Slots run in order: what is unfinished is this slot and maybe the one after it.
        for n in [slot, slot + 1] {
            let s = self.slot(n);
            // SAFETY: the child is gone; nobody else uses the memory.
            let (at, len) = unsafe {
                (
                    (*s).at.load(Ordering::Acquire) as usize,
                    (*s).len.load(Ordering::Acquire) as usize,
                )
            };
            if at >= len {
                if n == slot {
                    // All done but for the message.
                    self.send(n % SLOTS, len, len)?;
                }
                continue;
            }
            let culprit = n == slot;
            if culprit {
                // SAFETY: as above.
                unsafe { (*s).outputs[at].end = End::Skipped };
            }
            self.send(n % SLOTS, at + usize::from(culprit), len)?;
        }
        Ok(())
    }

    fn spawn(&self) -> io::Result<Child> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let code = trampoline::assemble(self.mode).map_err(io::Error::other)?;
        // SAFETY: the child only makes system calls and runs code that was made before.
        match unsafe { fork()? } {
            ForkResult::Parent { child } => Ok(Child {
                pid: child,
                link: ours,
            }),
            ForkResult::Child => child::main(self.shared, self.mode, &theirs.as_fd(), &code),
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.child = None;
        if let Some(p) = std::ptr::NonNull::new(self.shared) {
            // SAFETY: mapped in `new` with this size; the child is gone.
            let _ = unsafe { munmap(p.cast(), size_of::<Shared>()) };
        }
    }
}
