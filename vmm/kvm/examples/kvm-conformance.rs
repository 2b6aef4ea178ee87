//! Runs the conformance guests on the engine: `kvm-conformance [--on qemu|bochs] [FILTER]`. Ends with 1
//! if one fails.
//!
//! Left out, and named in number: what an engine that counts exits cannot do, what the architecture
//! leaves open, and on a processor that QEMU or Bochs emulates what that does not do. `--all` runs
//! those too.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use conformance::{Needs, Processor};
use engine::Engine;
use kvm::KvmEngine;
use vm_memory::GuestMemoryMmap;

fn main() -> ExitCode {
    let Some(Options {
        all,
        processor,
        filter,
    }) = Options::parse(std::env::args().skip(1))
    else {
        eprintln!("usage: kvm-conformance [--all] [--on qemu|bochs] [FILTER]");
        return ExitCode::from(2);
    };
    let make = |memory: &Arc<GuestMemoryMmap>| -> Box<dyn Engine> {
        match KvmEngine::new(memory) {
            Ok(mut engine) => {
                // A guest that should have ended, and runs for ever.
                engine.set_stretch_limit(Some(Duration::from_secs(2)));
                Box::new(engine)
            }
            Err(why) => {
                eprintln!("no engine: {why}");
                std::process::exit(2)
            }
        }
    };
    let (mut run, mut failed, mut left_out) = (0, 0, 0);
    for case in conformance::cases() {
        if !case.name.contains(&filter) {
            continue;
        }
        let fits = conformance::needs(case.name) == Needs::Nothing
            && conformance::does(processor, case.name);
        if !fits && !all {
            left_out += 1;
            continue;
        }
        run += 1;
        match (case.run)(&make) {
            Ok(()) => println!("ok   {}", case.name),
            Err(what) => {
                failed += 1;
                println!("FAIL {}: {what}", case.name);
            }
        }
    }
    println!("{run} run, {failed} failed, {left_out} left out");
    ExitCode::from(u8::from(failed != 0))
}

struct Options {
    all: bool,
    processor: Processor,
    filter: String,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let intel = std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Genu");
        let mut options = Self {
            all: false,
            processor: if intel {
                Processor::Intel
            } else {
                Processor::Any
            },
            filter: String::new(),
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--all" => options.all = true,
                "--on" => {
                    options.processor = match words.next()?.as_str() {
                        "qemu" => Processor::Qemu,
                        "bochs" => Processor::Bochs,
                        _ => return None,
                    }
                }
                filter => options.filter = filter.to_owned(),
            }
        }
        Some(options)
    }
}
