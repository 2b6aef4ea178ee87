//! The Intel machine: Bochs with VT-x. It boots from a CD, its disks are IDE disks, and the agent's port
//! is its second serial port, whose other end is a pseudoterminal of ours.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

use super::machine::{Emulator, KERNEL_LINE};
use super::parts::Parts;
use super::variant::Processor;

/// Instructions in a second of the rig: its clocks count instructions and nothing else. With as many as
/// this, what runs in the rig finds its processor as fast as QEMU's and its exits several times faster,
/// so that one set of bounds fits both. Bochs executes 50 to 100 million in a second of ours; time in
/// which the rig only waits is skipped, at some thousand million.
const PER_SECOND: u64 = 200_000_000;

/// The most that Bochs allocates; it emulates more, but keeps the rest in a file.
const MEMORY_MIB: u32 = 2048;

const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VGA_BIOS: &str = "/usr/share/vgabios/vgabios.bin";
const LOADER: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const LOADER_LIBRARY: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";

/// Starts it. The kernel's console goes to the file `console`, what Bochs itself says to a file beside
/// it.
pub fn start(parts: &Parts, console: &Path) -> Result<Emulator> {
    let folder = tempfile::Builder::new()
        .prefix("bochs-")
        .tempdir_in(&parts.folder)?;
    make_disc(parts, folder.path())?;
    fs::write(console, "").with_context(|| console.display().to_string())?;
    // Bochs puts its lock files and redo logs beside an image's name: here, they are in the folder.
    for (name, target) in [
        ("root", &*parts.root),
        ("image", &*parts.image),
        ("work", &*parts.work),
        ("console", console),
    ] {
        symlink(fs::canonicalize(target)?, folder.path().join(name))?;
    }
    // Bochs opens the other end and sets it to raw mode. As we do not, ours ends with Bochs.
    let port = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&port)?;
    unlockpt(&port)?;
    let configuration = configuration(&ptsname_r(&port)?);
    fs::write(folder.path().join("bochsrc"), configuration)?;
    let log_path = console.with_extension("bochs.log");
    let log = File::create(&log_path).with_context(|| log_path.display().to_string())?;
    let process = command(folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("Bochs could not be started (packages bochs, util-linux)")?;
    let port = File::from(OwnedFd::from(port));
    Ok(Emulator {
        process,
        commands: Box::new(port.try_clone()?),
        output: Box::new(port),
        log: Some(log_path),
        folder: Some(folder),
    })
}

/// `setpriv` lets Bochs die with this process, whichever way that ends; in a process group of its own
/// Bochs does not get the terminal's Ctrl-C before us. Bochs has no display without a window or a
/// terminal but a VNC server: it listens in a network of its own, where nobody is.
fn command(folder: &Path) -> Command {
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-current-user"]);
    }
    command.args(["--net", "setpriv", "--pdeathsig", "KILL"]);
    // Debian's Bochs has its debugger built in, which has to be told to go on.
    command.args(["bochs-bin", "-q", "-f", "bochsrc", "-rc", "debugger"]);
    command.current_dir(folder);
    command.process_group(0);
    command
}

/// Bochs's configuration; `port` is the agent's pseudoterminal.
fn configuration(port: &str) -> String {
    format!(
        "megs: {MEMORY_MIB}
cpu: model=corei7_skylake_x, count=1, ips={PER_SECOND}, reset_on_triple_fault=0
clock: sync=none, time0=utc
romimage: file={BIOS}, options=fastboot
vgaromimage: file={VGA_BIOS}
display_library: rfb, options=\"timeout=0\"
pci: enabled=1, chipset=i440fx
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path=root, mode=volatile, cylinders=0, model=rig-root
ata0-slave: type=disk, path=image, mode=volatile, cylinders=0, model=rig-image
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata1-master: type=disk, path=work, mode=flat, cylinders=0, model=rig-work
ata1-slave: type=cdrom, path=disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=console
com2: enabled=1, mode=term, dev={port}
speaker: enabled=0
plugin_ctrl: speaker=0
log: /dev/null
panic: action=fatal
error: action=ignore
info: action=ignore
"
    )
}

/// Makes `disc.iso` in `folder`: the kernel, its initramfs and a boot loader, since Bochs cannot load a
/// kernel itself. Also the debugger's one command.
fn make_disc(parts: &Parts, folder: &Path) -> Result<()> {
    let kernel = parts.kernel(Processor::Intel)?;
    let tree = folder.join("disc");
    fs::create_dir(&tree)?;
    for (from, name) in [
        (&*kernel.kernel, "vmlinuz"),
        (&*kernel.initrd, "initrd.img"),
        (Path::new(LOADER), "isolinux.bin"),
        (Path::new(LOADER_LIBRARY), "ldlinux.c32"),
    ] {
        fs::copy(from, tree.join(name)).with_context(|| from.display().to_string())?;
    }
    let line = kernel_line();
    let loader = format!(
        "DEFAULT rig\nPROMPT 0\nLABEL rig\nKERNEL vmlinuz\nINITRD initrd.img\nAPPEND {line}\n"
    );
    fs::write(tree.join("isolinux.cfg"), loader)?;
    fs::write(folder.join("debugger"), "c\n")?;
    let output = Command::new("genisoimage")
        .args([
            "-quiet",
            "-o",
            "disc.iso",
            "-b",
            "isolinux.bin",
            "-c",
            "boot.cat",
        ])
        .args([
            "-no-emul-boot",
            "-boot-load-size",
            "4",
            "-boot-info-table",
            "disc",
        ])
        .current_dir(folder)
        .output()
        .context("genisoimage (package genisoimage)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("genisoimage: {}", said.trim());
    }
    Ok(())
}

/// The processor says in CPUID that its clock has 3.5 GHz, and the kernel would believe it: its clock
/// would be slow, and the APIC's timer, whose speed it would take from there too, much too fast. With
/// the clock given it measures the APIC's. A reboot is a triple fault, which ends Bochs.
fn kernel_line() -> String {
    let khz = PER_SECOND / 1000;
    format!("{KERNEL_LINE} panic=-1 reboot=t random.trust_cpu=on tsc_early_khz={khz}")
}
