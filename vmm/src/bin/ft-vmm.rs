//! `ft-vmm`: one replica of a fault-tolerant virtual machine; see [`vmm::program`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::program::main(vmm::engines::make)
}
