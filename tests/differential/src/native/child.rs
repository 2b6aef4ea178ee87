//! The child: maps the case's address space, catches every exception, shuts itself off from the
//! system, and runs what it is told to.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, c_void};

use super::trampoline::{
    FX_IN, FX_OUT, GPR_IN, GPR_OUT, RESUME, RFLAGS_IN, RFLAGS_OUT, RIP_IN, STATE,
};
use super::{SLOTS, Shared};
use crate::case::{
    CODE, CODE_SIZE, DATA, DATA_SIZE, DATA_WRITABLE, End, GS_BASE, HARNESS, Input, Mode, Output,
    PAGE, STACK,
};

/// Offsets of the pages in the file behind the case's memory.
const CODE_AT: usize = 0;
const DATA_AT: usize = CODE_SIZE;
const STACK_AT: usize = DATA_AT + DATA_SIZE;
const HARNESS_AT: usize = STACK_AT + PAGE;
const FILE_SIZE: usize = HARNESS_AT + 2 * PAGE;

/// Where the signal handler puts what it finds; null while no case runs.
static OUTPUT: AtomicPtr<Output> = AtomicPtr::new(null_mut());

/// Exit statuses of the child, for whoever debugs it.
const EXIT_SETUP: c_int = 3;
const EXIT_HARNESS: c_int = 4;

/// Never returns. Uses nothing that another thread of the parent could have locked.
pub fn main(shared: *mut Shared, mode: Mode, link: &BorrowedFd, trampoline: &[u8]) -> ! {
    // SAFETY: this process has one thread and owns all that it touches.
    unsafe {
        let Some(alias) = set_up(trampoline) else {
            libc::_exit(EXIT_SETUP)
        };
        let fd = link.as_raw_fd();
        loop {
            let mut slot = 0u8;
            if libc::read(fd, (&raw mut slot).cast(), 1) != 1 {
                libc::_exit(0);
            }
            let s = &raw mut (*shared).slots[usize::from(slot) % SLOTS];
            let len = (*s).len.load(Ordering::Acquire);
            for i in (*s).first.load(Ordering::Acquire)..len {
                (*s).at.store(i, Ordering::Release);
                run(
                    alias,
                    mode,
                    &(*s).inputs[i as usize],
                    &raw mut (*s).outputs[i as usize],
                );
            }
            (*s).at.store(len, Ordering::Release);
            if libc::write(fd, (&raw const slot).cast(), 1) != 1 {
                libc::_exit(0);
            }
        }
    }
}

/// Runs one case.
///
/// # Safety
///
/// After `set_up`, with its result.
unsafe fn run(alias: *mut u8, mode: Mode, input: &Input, output: *mut Output) {
    // SAFETY: the alias covers the whole file, the state page is mapped, and the trampoline saves
    // and restores what a function must.
    unsafe {
        let put = |at: usize, bytes: &[u8]| {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), alias.add(at), bytes.len());
        };
        alias.add(CODE_AT).write_bytes(0xcc, CODE_SIZE);
        let (at, code) = input.placed_code();
        put(CODE_AT + at, code);
        put(DATA_AT, &input.data);
        put(STACK_AT, &input.stack);
        (GPR_IN as *mut [u64; 16]).write(input.gpr);
        (RFLAGS_IN as *mut u64).write(input.rflags);
        (RIP_IN as *mut u64).write(input.code_at);
        (FX_IN as *mut [u8; 512]).write(input.fx);
        (*output).end = End::Reached;
        OUTPUT.store(output, Ordering::Release);
        let enter: extern "sysv64" fn() = std::mem::transmute::<u64, extern "sysv64" fn()>(HARNESS);
        enter();
        OUTPUT.store(null_mut(), Ordering::Release);
        if (*output).end == End::Reached {
            (*output).rip = mode.end();
            (*output).gpr = (GPR_OUT as *const [u64; 16]).read();
            (*output).rflags = (RFLAGS_OUT as *const u64).read();
            (*output).fx = (FX_OUT as *const [u8; 512]).read();
        }
        (*output).data = alias.add(DATA_AT).cast::<[u8; DATA_WRITABLE]>().read();
        (*output).stack = alias.add(STACK_AT).cast::<[u8; PAGE]>().read();
    }
}

/// Maps, installs handlers, locks down. Gives the writable alias of the file.
unsafe fn set_up(trampoline: &[u8]) -> Option<*mut u8> {
    // SAFETY: plain system calls; the fixed addresses lie where nothing else of a PIE process is.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let core = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::setrlimit(libc::RLIMIT_CORE, &core);
        let file = libc::memfd_create(c"case".as_ptr(), libc::MFD_CLOEXEC);
        if file < 0 || libc::ftruncate(file, FILE_SIZE as i64) != 0 {
            return None;
        }
        let map = |at: u64, len: usize, protection: c_int, offset: usize| {
            let fixed = if at == 0 {
                0
            } else {
                libc::MAP_FIXED_NOREPLACE
            };
            let p = libc::mmap(
                at as *mut c_void,
                len,
                protection,
                libc::MAP_SHARED | libc::MAP_POPULATE | fixed,
                file,
                offset as i64,
            );
            (p != libc::MAP_FAILED && (at == 0 || p as u64 == at)).then_some(p.cast::<u8>())
        };
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let rx = libc::PROT_READ | libc::PROT_EXEC;
        let alias = map(0, FILE_SIZE, rw, 0)?;
        std::ptr::copy_nonoverlapping(
            trampoline.as_ptr(),
            alias.add(HARNESS_AT),
            trampoline.len().min(PAGE),
        );
        map(CODE, CODE_SIZE, rx, CODE_AT)?;
        map(DATA, DATA_WRITABLE, rw, DATA_AT)?;
        map(
            DATA + DATA_WRITABLE as u64,
            DATA_SIZE - DATA_WRITABLE,
            libc::PROT_READ,
            DATA_AT + DATA_WRITABLE,
        )?;
        map(STACK, PAGE, rw, STACK_AT)?;
        map(HARNESS, PAGE, rx, HARNESS_AT)?;
        map(STATE, PAGE, rw, HARNESS_AT + PAGE)?;
        const ARCH_SET_GS: c_int = 0x1001;
        const ARCH_SET_CPUID: c_int = 0x1012;
        if libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE) != 0 {
            return None;
        }
        // Best effort: without it CPUID and RDTSC, reached by a jump into the middle of an
        // instruction, look like a difference.
        libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, 0);
        libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV);
        install_handlers()?;
        lock_down()?;
        Some(alias)
    }
}

unsafe fn install_handlers() -> Option<()> {
    // Large: the frame holds the whole extended state.
    const STACK_SIZE: usize = 1 << 17;
    // SAFETY: plain system calls.
    unsafe {
        let stack = libc::mmap(
            null_mut(),
            STACK_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if stack == libc::MAP_FAILED {
            return None;
        }
        let alternate = libc::stack_t {
            ss_sp: stack,
            ss_flags: 0,
            ss_size: STACK_SIZE,
        };
        if libc::sigaltstack(&alternate, null_mut()) != 0 {
            return None;
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&mut action.sa_mask);
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGTRAP,
            libc::SIGSYS,
        ] {
            if libc::sigaction(signal, &action, null_mut()) != 0 {
                return None;
            }
        }
        Some(())
    }
}

/// Copies what the CPU left into the output and goes back to the harness.
extern "C" fn handler(signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    /// `ucontext`'s order of registers, by ours.
    const ORDER: [c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    // SAFETY: the stack is as before; the kernel passes a ucontext_t; `OUTPUT` points into the
    // shared memory.
    unsafe {
        // Linux enters a handler with the AC of the case, and the vector moves of a copy are
        // checked as well on some hosts.
        std::arch::asm!(
            "pushfq",
            "and qword ptr [rsp], {}",
            "popfq",
            const !(1 << 18)
        );
        let output = OUTPUT.load(Ordering::Acquire);
        if output.is_null() {
            libc::_exit(EXIT_HARNESS);
        }
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let register = |n: c_int| machine.gregs[n as usize] as u64;
        let rip = register(libc::REG_RIP);
        // In the harness itself: TF was on, or it was jumped into.
        let harness = (HARNESS..STATE).contains(&rip) && rip != HARNESS;
        (*output).end = if signal == libc::SIGSYS || harness {
            End::Skipped
        } else {
            End::Exception
        };
        (*output).vector = register(libc::REG_TRAPNO) as u32;
        (*output).error = register(libc::REG_ERR);
        (*output).cr2 = register(libc::REG_CR2);
        (*output).rip = rip;
        (*output).rflags = register(libc::REG_EFL);
        for (out, n) in (*output).gpr.iter_mut().zip(ORDER) {
            *out = register(n);
        }
        (*output).fx = machine.fpregs.cast::<[u8; 512]>().read();
        machine.gregs[libc::REG_RIP as usize] = RESUME as i64;
        machine.gregs[libc::REG_EFL as usize] = 0x202;
        let selectors = &mut machine.gregs[libc::REG_CSGSFS as usize];
        *selectors = *selectors & !0xffff | i64::from(Mode::Bits64.code_selector());
    }
}

/// Only reading and writing the link, returning from signals and exiting are allowed, and nothing at
/// all from the low addresses that cases run at.
unsafe fn lock_down() -> Option<()> {
    const LD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = |n: libc::c_long| n as u32;
    let filter = [
        op(LD, 0, 0, 12), // high half of the instruction pointer
        op(JEQ, 0, 1, 0),
        op(RET, 0, 0, libc::SECCOMP_RET_TRAP),
        op(LD, 0, 0, 0), // system call number
        op(JEQ, 5, 0, number(libc::SYS_rt_sigreturn)),
        op(JEQ, 4, 0, number(libc::SYS_read)),
        op(JEQ, 3, 0, number(libc::SYS_write)),
        op(JEQ, 2, 0, number(libc::SYS_exit_group)),
        op(JEQ, 1, 0, number(libc::SYS_exit)),
        op(RET, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        op(RET, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program is well formed and copied by the kernel.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return None;
        }
        let done = libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        );
        (done == 0).then_some(())
    }
}
