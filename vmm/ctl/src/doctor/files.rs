//! Programs, folders, memory and ports that machines need on this host.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm::config::Config;

use super::{Check, Verdict};
use crate::process;
use crate::rundir;

/// Memory of a replica beside the guest's RAM, about.
const REPLICA_EXTRA: u64 = 128 << 20;
/// Room that a machine's copy of the guest's disk and a saved state take, about.
const ROOM: u64 = 2 << 30;

pub fn checks() -> Vec<Check> {
    vec![
        own_programs(),
        guest_image(),
        passt(),
        run_dir(),
        memory(),
        loopback(),
    ]
}

fn own_programs() -> Check {
    for name in ["ft-vmm", "ft-diskd", "ft-netd"] {
        if let Err(why) = process::program(name) {
            return Check::new("programs", Verdict::Fail, why.to_string())
                .fix("cargo build --release");
        }
    }
    Check::new(
        "programs",
        Verdict::Ok,
        "ft-vmm, ft-diskd and ft-netd are there",
    )
}

/// Building the Debian guest needs Debian's tools and root; a cached one needs neither.
fn guest_image() -> Check {
    const NAME: &str = "guest image";
    let cache = match guest_images::default_cache_dir() {
        Ok(cache) => cache,
        Err(why) => {
            return Check::new(NAME, Verdict::Warn, why.to_string())
                .fix("set HOME or LOCKSTEP_CACHE");
        }
    };
    let images = std::fs::read_dir(cache.join("images"));
    if images.is_ok_and(|mut images| images.next().is_some()) {
        return Check::new(NAME, Verdict::Ok, format!("cached in {}", cache.display()));
    }
    let missing: Vec<&str> = ["apt-get", "dpkg-deb", "chroot"]
        .into_iter()
        .filter(|tool| find(tool).is_none())
        .collect();
    if !missing.is_empty() {
        let detail = format!("none cached, and this host has no {}", missing.join(", "));
        return Check::new(NAME, Verdict::Fail, detail)
            .fix("build it on Debian, or boot a kernel of your own (--kernel)");
    }
    if !nix::unistd::geteuid().is_root() {
        return Check::new(
            NAME,
            Verdict::Warn,
            "none cached; building one needs root, once",
        )
        .fix("run the first `ft-ctl up` as root with the same LOCKSTEP_CACHE");
    }
    Check::new(
        NAME,
        Verdict::Ok,
        "none cached; the first `ft-ctl up` builds it",
    )
}

fn passt() -> Check {
    match find("passt") {
        Some(path) => Check::new("passt", Verdict::Ok, path.display().to_string()),
        None => Check::new(
            "passt",
            Verdict::Note,
            "not there; only --net passt needs it, --net user (the default) does not",
        )
        .fix("apt-get install passt"),
    }
}

fn run_dir() -> Check {
    const NAME: &str = "run folder";
    let probe = rundir::base().join(format!(".doctor-{}", std::process::id()));
    let tried = rundir::make_base().map_err(|why| why.to_string());
    let tried = tried.and_then(|()| {
        std::fs::write(&probe, b"x")
            .and_then(|()| std::fs::remove_file(&probe))
            .map_err(|why| why.to_string())
    });
    let base = rundir::base();
    if let Err(why) = tried {
        return Check::new(NAME, Verdict::Fail, format!("{}: {why}", base.display()))
            .fix("set LOCKSTEP_DIR to a folder that you can write to");
    }
    let free = nix::sys::statvfs::statvfs(&base).map_or(u64::MAX, |found| {
        found.blocks_available() * found.fragment_size()
    });
    let detail = format!("{}, {} MiB free", base.display(), free >> 20);
    if free < ROOM {
        return Check::new(NAME, Verdict::Warn, detail)
            .fix("set LOCKSTEP_DIR to a folder with 2 GiB for the machine's disk");
    }
    Check::new(NAME, Verdict::Ok, detail)
}

fn memory() -> Check {
    const NAME: &str = "memory";
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = info.lines().find_map(|line| {
        let kib = line.strip_prefix("MemAvailable:")?.trim();
        kib.strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    let Some(free) = free.map(|kib| kib << 10) else {
        return Check::new(
            NAME,
            Verdict::Note,
            "the host does not say how much is free",
        );
    };
    let ram = Config::default().vm.memory.bytes();
    let needed = 2 * (ram + REPLICA_EXTRA);
    let detail = format!(
        "{} MiB available; a pair with {} MiB of RAM takes up to {} MiB",
        free >> 20,
        ram >> 20,
        needed >> 20
    );
    if free < needed {
        return Check::new(NAME, Verdict::Warn, detail)
            .fix("give the machine less: --memory 256MiB");
    }
    Check::new(NAME, Verdict::Ok, detail)
}

/// A connection to ourselves, as all channels of a machine on one host are.
fn loopback() -> Check {
    let tried = || -> std::io::Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let at = listener.local_addr()?;
        let mut client = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
        let (mut server, _) = listener.accept()?;
        server.set_read_timeout(Some(Duration::from_secs(2)))?;
        client.write_all(b"x")?;
        server.read_exact(&mut [0])?;
        Ok(at.port())
    };
    match tried() {
        Ok(_) => Check::new("loopback", Verdict::Ok, "TCP on 127.0.0.1 works"),
        Err(why) => Check::new(
            "loopback",
            Verdict::Fail,
            format!("TCP on 127.0.0.1 does not work: {why}"),
        )
        .fix("bring the interface up: ip link set lo up"),
    }
}

/// Where a program is on the PATH or among the system's.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/bin", "/sbin"].map(PathBuf::from));
    folders
        .iter()
        .map(|folder| folder.join(program))
        .find(|path: &PathBuf| Path::is_file(path))
}
