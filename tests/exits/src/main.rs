//! `ft-vmm-exits`: the program `ft-vmm`, with the engine of this crate in it. Under the name of
//! `ft-vmm` beside Lockstep's other programs it lets every end-to-end test run on such an engine.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::program::main(exits::make)
}
