//! The AMD machine: QEMU's TCG with AMD SVM. The agent's virtio port is QEMU's standard input and
//! output.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::machine::{Emulator, KERNEL_LINE};
use super::parts::Parts;
use super::variant::Processor;

/// AMD-V with nested paging. RDRAND and RDSEED of a guest's guest cannot be hidden on AMD, so that the
/// rig has none; the rest is what TCG would leave out anyhow, each with a warning.
const CPU: &str = "EPYC,+svm,+npt,-rdrand,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,\
                   -osvw,-topoext,-nrip-save,-xsavec";

const MEMORY_MIB: u32 = 3072;

/// Starts it, with nested paging for KVM's guests or without. The kernel's console goes to the file
/// `console`.
pub fn start(parts: &Parts, nested_paging: bool, console: &Path) -> Result<Emulator> {
    let mut process = command(parts, nested_paging, console)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("QEMU could not be started (packages qemu-system-x86, util-linux)")?;
    let commands = process.stdin.take().context("QEMU has no input")?;
    let output = process.stdout.take().context("QEMU has no output")?;
    Ok(Emulator {
        process,
        commands: Box::new(commands),
        output: Box::new(output),
        log: None,
        folder: None,
    })
}

/// `setpriv` lets QEMU die with this process, whichever way that ends; in a process group of its own
/// QEMU does not get the terminal's Ctrl-C before us.
///
/// All of QEMU's threads stay on one of the host's processors. On two of them QEMU 7.2 loses interrupts:
/// its VMRUN sets a bit in the word of pending ones with an `or` that is neither atomic nor under the
/// lock, and what the timer's thread puts there in that moment is gone. The kernel in the rig then
/// waits for ever, halted, with the timer's vector in the APIC's IRR. On one processor no other thread
/// gets in the middle of an instruction.
fn command(parts: &Parts, nested_paging: bool, console: &Path) -> Result<Command> {
    let kernel = parts.kernel(Processor::Amd)?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    command.args(["taskset", "--cpu-list", &processor().to_string()]);
    command.arg("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-machine", "q35", "-no-reboot"]);
    // One core, since all of QEMU runs on one.
    command.args(["-accel", "tcg,tb-size=512", "-smp", "1", "-m"]);
    command.arg(MEMORY_MIB.to_string());
    command.args(["-cpu", CPU]);
    command.arg("-kernel").arg(&kernel.kernel);
    command.arg("-initrd").arg(&kernel.initrd);
    let npt = u8::from(nested_paging);
    // On a busy host the timer's first ticks come too late for the kernel's test of its interrupt.
    let line = format!("{KERNEL_LINE} panic=-1 no_timer_check rig.npt={npt}");
    command.arg("-append").arg(line);
    let serial = format!("file,id=console,path={}", escaped(console));
    command.args(["-chardev", &serial, "-serial", "chardev:console"]);
    for (disk, options) in [
        (&parts.root, "snapshot=on"),
        (&parts.image, "readonly=on"),
        (&parts.work, "discard=unmap"),
    ] {
        let path = escaped(disk);
        command.arg("-drive").arg(format!(
            "file={path},format=raw,if=virtio,cache=unsafe,{options}"
        ));
    }
    command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
    command.args(["-chardev", "stdio,id=agent,signal=off"]);
    command.args(["-device", "virtserialport,chardev=agent,name=rig"]);
    command.process_group(0);
    Ok(command)
}

/// The last processor that we may run on; most of the host's interrupts go to the first.
fn processor() -> usize {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let is_allowed = |number: &usize| allowed.is_set(*number).unwrap_or(false);
    (0..CpuSet::count()).rev().find(is_allowed).unwrap_or(0)
}

/// QEMU's options are separated by commas; a doubled one stands for itself.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
