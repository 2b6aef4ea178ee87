//! The Debian packages that the commands need, and how they get onto the machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use cli::println;

/// A program and the package that has it.
struct Need {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

/// What running a guest needs.
const RUN: &[Need] = &[Need {
    program: FONT,
    package: "fonts-dejavu-core",
    why: "the text in the charts",
}];

/// A file, unlike the others.
pub const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";

/// What the tests need besides.
const TEST: &[Need] = &[
    Need {
        program: "passt",
        package: "passt",
        why: "the other rootless network",
    },
    Need {
        program: "redis-server",
        package: "redis-server",
        why: "the checker's own tests",
    },
    Need {
        program: "redis-cli",
        package: "redis-tools",
        why: "a real client",
    },
    Need {
        program: "nbdinfo",
        package: "libnbd-bin",
        why: "NBD conformance",
    },
    Need {
        program: "nbdcopy",
        package: "libnbd-bin",
        why: "NBD conformance",
    },
    Need {
        program: "qemu-io",
        package: "qemu-utils",
        why: "NBD conformance",
    },
    Need {
        program: "ip",
        package: "iproute2",
        why: "hosts in network namespaces",
    },
    Need {
        program: "curl",
        package: "curl",
        why: "a real HTTP client",
    },
];

/// What the nested rig needs.
const RIG: &[Need] = &[
    Need {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "the rig's machine",
    },
    Need {
        program: "mke2fs",
        package: "e2fsprogs",
        why: "the rig's disks",
    },
    Need {
        program: "setpriv",
        package: "util-linux",
        why: "the rig ends with its command",
    },
];

/// What the nested rig with VT-x needs besides.
const RIG_INTEL: &[Need] = &[
    Need {
        program: "bochs-bin",
        package: "bochs",
        why: "the rig's machine",
    },
    Need {
        program: "/usr/share/bochs/BIOS-bochs-latest",
        package: "bochsbios",
        why: "its BIOS",
    },
    Need {
        program: "/usr/share/vgabios/vgabios.bin",
        package: "vgabios",
        why: "its display's BIOS",
    },
    Need {
        program: "/usr/lib/ISOLINUX/isolinux.bin",
        package: "isolinux",
        why: "its boot loader",
    },
    Need {
        program: "/usr/lib/syslinux/modules/bios/ldlinux.c32",
        package: "syslinux-common",
        why: "the boot loader's library",
    },
    Need {
        program: "genisoimage",
        package: "genisoimage",
        why: "the CD that it boots from",
    },
];

/// Installs what running a guest needs.
pub fn for_running() -> Result<()> {
    install(&missing(RUN))
}

/// Installs what the tests need.
pub fn for_testing() -> Result<()> {
    install(&[missing(RUN), missing(TEST)].concat())
}

/// Installs what the rig needs; with `intel` what the machine with VT-x does as well.
pub fn for_rig(intel: bool) -> Result<()> {
    let besides = if intel { RIG_INTEL } else { &[] };
    install(&[missing(RIG), missing(besides)].concat())
}

fn missing(needs: &'static [Need]) -> Vec<&'static Need> {
    needs.iter().filter(|need| !on_path(need.program)).collect()
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into(), Path::new("/sbin").into()])
        .any(|dir| dir.join(program).is_file())
}

fn install(needs: &[&Need]) -> Result<()> {
    if needs.is_empty() {
        return Ok(());
    }
    println!("=== Debian packages that are missing here:");
    for need in needs {
        println!(
            "    {:14} for {} ({})",
            need.package, need.program, need.why
        );
    }
    let mut names: Vec<&str> = needs.iter().map(|need| need.package).collect();
    names.sort_unstable();
    names.dedup();
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "install them, then try again:\n    sudo apt-get install {}",
            names.join(" ")
        );
    }
    apt(&["update"])?;
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(&names);
    apt(&args)
}

fn apt(args: &[&str]) -> Result<()> {
    println!("    $ apt-get {}", args.join(" "));
    // A package's own service must not be started by its installation: tests start what they need.
    let status = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .stdout(std::process::Stdio::null())
        .status()?;
    if !status.success() {
        bail!("apt-get {} failed ({status})", args.join(" "));
    }
    Ok(())
}
