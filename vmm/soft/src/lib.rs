//! Lockstep's software x86-64 CPU: an [`engine::Engine`] that runs anywhere.
//!
//! Guest code is decoded once into blocks of compact [`op::Op`]s, each with a handler specialised
//! for its operands; running is calling the handlers in turn. Everything the guest can see depends
//! on its own execution and on the answers it is given: block cache and TLB are invisible.
//!
//! Where things are:
//!
//! | module | topic |
//! |---|---|
//! | `engine` | the `Engine` implementation: the run loop, positions, exits |
//! | `cpu` | the state, laid out for handlers and generated code |
//! | `op`, `decode`, `chain`, `block` | decoded instructions, decoding, how they follow each other, the cache of decoded blocks |
//! | `ea` | effective addresses of memory operands |
//! | `stop`, `external` | why an instruction did not complete; port and MMIO reads and writes |
//! | `width`, `alu`, `flags` | integer widths, arithmetic with host flags, RFLAGS |
//! | `int` | handlers of the integer instructions |
//! | `phys`, `mmu` | RAM and its page flags, loads and stores |
//! | `tlb`, `paging`, `tables` | software TLB, page walk, coherence of the TLB with page tables |
//! | `segments`, `descriptor` | segmentation, descriptors and their loading |
//! | `exceptions`, `gates`, `tasks`, `debug` | delivery of exceptions and interrupts, handlers, task switch, breakpoints |
//! | `system` and the files it lists | system instructions: far transfers, IRET, SYSCALL, control registers, port I/O, MSRs, CPUID |
//! | `state` | conversion to and from `CpuState` |
//! | `native`, `fpstate`, `sse`, `x87` | vector and floating-point instructions |

mod alu;
mod block;
mod chain;
mod control;
mod cpu;
mod cpuid;
mod debug;
mod decode;
mod descriptor;
mod descriptor_ops;
mod ea;
mod engine;
mod exceptions;
mod external;
mod far;
mod fast_call;
mod flags;
mod fpstate;
mod gates;
mod hash;
mod int;
mod io;
mod iret;
mod mmu;
mod msr;
mod native;
mod op;
mod paging;
mod phys;
mod segments;
mod sse;
mod state;
mod stop;
mod system;
mod tables;
mod tasks;
mod tlb;
mod width;
mod x87;

pub use engine::SoftEngine;
