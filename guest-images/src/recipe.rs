//! The recipe: which packages, which files of our own, which kernel command
//! line. Whatever changes the image goes into its key.

use std::path::PathBuf;

use xxhash_rust::xxh3::Xxh3;

use crate::apt::Lock;
use crate::{BuildError, cache};

/// The suites that packages are taken from.
pub const SUITES: [&str; 3] = ["bookworm", "bookworm-updates", "bookworm-security"];

/// The package that depends on the newest kernel image of the release.
pub const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Packages of the root disk beside Debian's essential ones.
const PACKAGES: &[&str] = &[
    "apt",
    "bash",
    "busybox-static",
    "ca-certificates",
    "coreutils",
    "curl",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "netbase",
    "nginx",
    "openssh-server",
    "openssl",
    "procps",
    "python3-minimal",
    "redis-server",
    "stress-ng",
    "sysvinit-core",
    "usr-is-merged",
    "util-linux",
];

/// Kernel modules that the initramfs loads, in this order, each after those
/// that it depends on.
pub const INITRD_MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci",
    "virtio_rng",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
];

/// A file of our own that goes onto the root disk.
pub struct GuestFile {
    /// Path inside the guest, without the leading slash.
    pub path: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub text: &'static str,
}

macro_rules! guest_file {
    ($path:literal, $mode:literal, $source:literal) => {
        GuestFile {
            path: $path,
            mode: $mode,
            text: include_str!(concat!("../guest/", $source)),
        }
    };
}

/// Files that replace or add to those of the packages.
pub const FILES: &[GuestFile] = &[
    guest_file!("etc/inittab", 0o644, "inittab"),
    guest_file!("etc/fstab", 0o644, "fstab"),
    guest_file!("etc/hosts", 0o644, "hosts"),
    guest_file!("etc/apt/sources.list", 0o644, "sources.list"),
    guest_file!("etc/redis/redis.conf", 0o640, "redis.conf"),
    guest_file!("var/www/html/index.html", 0o644, "index.html"),
    guest_file!("usr/local/sbin/guest-start", 0o755, "guest-start"),
    guest_file!("usr/local/sbin/guest-stop", 0o755, "guest-stop"),
    guest_file!("usr/local/sbin/guest-getty", 0o755, "guest-getty"),
    guest_file!("usr/local/sbin/guest-shell", 0o755, "guest-shell"),
    guest_file!("usr/local/sbin/guest-dhcp", 0o755, "guest-dhcp"),
];

/// The initramfs's `/init`.
pub const INITRD_INIT: &str = include_str!("../guest/init");

/// Changes when the builder makes something else of the same recipe.
const BUILDER_VERSION: u32 = 3;

/// What may be chosen about a guest. `Options::default()` is the guest of the
/// README, the demo and the tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where downloads and images are kept; [`crate::default_cache_dir`] if none.
    pub cache: Option<PathBuf>,
    /// Length of the root disk in bytes: 512 MiB to 1 TiB, whole MiB.
    pub disk_bytes: u64,
    /// Debian packages to install beside those of the recipe.
    pub packages: Vec<String>,
    /// The guest's host name: a single label of letters, digits and hyphens.
    pub hostname: String,
    /// A line for root's `authorized_keys`; sshd starts only when there is one.
    pub ssh_key: Option<String>,
    /// Ask the mirror for newer packages even if the cache has some.
    pub refresh: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache: None,
            disk_bytes: 1 << 30,
            packages: Vec::new(),
            hostname: "guest".into(),
            ssh_key: None,
            refresh: false,
        }
    }
}

const MIB: u64 = 1 << 20;

impl Options {
    /// Refuses values out of range, before anything is done.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        let bad = |option, problem: String| Err(BuildError::Option { option, problem });
        let range = 512 * MIB..=(1 << 40);
        if !range.contains(&self.disk_bytes) || !self.disk_bytes.is_multiple_of(MIB) {
            let problem = format!(
                "{} bytes; a disk has 512 MiB to 1 TiB, in whole MiB",
                self.disk_bytes
            );
            return bad("size", problem);
        }
        let label = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let name = &self.hostname;
        if name.is_empty()
            || name.len() > 63
            || !name.chars().all(label)
            || name.starts_with('-')
            || name.ends_with('-')
        {
            let problem = format!("'{name}' is not a host name (letters, digits, inner hyphens)");
            return bad("hostname", problem);
        }
        let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        for package in &self.packages {
            let first = package.chars().next();
            if !first.is_some_and(|c| c.is_ascii_alphanumeric()) || !package.chars().all(part) {
                let problem = format!("'{package}' is not the name of a Debian package");
                return bad("packages", problem);
            }
        }
        match &self.ssh_key {
            Some(key) if key.trim().is_empty() || key.trim().contains('\n') => {
                bad("ssh-key", "give one line as in an id_*.pub file".into())
            }
            _ => Ok(()),
        }
    }

    /// The cache directory in use.
    pub(crate) fn cache_dir(&self) -> Result<PathBuf, BuildError> {
        match &self.cache {
            Some(folder) => Ok(folder.clone()),
            None => cache::default_cache_dir(),
        }
    }

    /// All packages by name, sorted, the kernel not among them.
    pub(crate) fn package_names(&self) -> Vec<String> {
        let mut names: Vec<String> = PACKAGES.iter().map(|p| p.to_string()).collect();
        names.extend(self.packages.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// The kernel command line that the default guest boots with.
///
/// - `console=ttyS0`: the first serial port is the console.
/// - `root=/dev/vda rw rootfstype=ext4`: read by our initramfs.
/// - `net.ifnames=0`: the network device is `eth0`.
/// - `cryptomgr.notests`: no self-tests of crypto code at boot, which are
///   more than half of the kernel's boot on a CPU in software.
/// - `tsc=reliable`: the machine's clocks are one clock, so the kernel need not
///   watch the TSC with another one twice a second.
/// - `quiet`: each console byte is an output of the machine; warnings still show.
/// - `panic=-1`: a kernel panic reboots at once.
///
/// Read by the guest's own scripts, for callers to append:
/// `lockstep.ip=ADDRESS/BITS,GATEWAY,DNS` or `lockstep.ip=dhcp` (the default
/// is `10.0.2.15/24,10.0.2.2,10.0.2.3`), `lockstep.appendfsync=always|everysec|no`.
pub fn default_cmdline() -> String {
    "console=ttyS0 root=/dev/vda rootfstype=ext4 rw net.ifnames=0 cryptomgr.notests \
     random.trust_cpu=off tsc=reliable quiet panic=-1"
        .into()
}

/// The key of a set of package names, under which its exact versions are kept.
pub fn package_key(options: &Options) -> String {
    let mut hash = Xxh3::new();
    for text in SUITES {
        feed(&mut hash, text.as_bytes());
    }
    feed(&mut hash, KERNEL_PACKAGE.as_bytes());
    for name in options.package_names() {
        feed(&mut hash, name.as_bytes());
    }
    format!("{:016x}", hash.digest())
}

/// The key of an image: everything that decides what is in it.
pub fn image_key(options: &Options, lock: &Lock) -> String {
    let mut hash = Xxh3::new();
    feed(&mut hash, &BUILDER_VERSION.to_le_bytes());
    for deb in lock.all() {
        feed(&mut hash, deb.hash.as_bytes());
    }
    for file in FILES {
        feed(&mut hash, file.path.as_bytes());
        feed(&mut hash, &file.mode.to_le_bytes());
        feed(&mut hash, file.text.as_bytes());
    }
    feed(&mut hash, INITRD_INIT.as_bytes());
    for module in INITRD_MODULES {
        feed(&mut hash, module.as_bytes());
    }
    feed(&mut hash, default_cmdline().as_bytes());
    feed(&mut hash, &options.disk_bytes.to_le_bytes());
    feed(&mut hash, options.hostname.as_bytes());
    feed(
        &mut hash,
        options.ssh_key.as_deref().unwrap_or("").as_bytes(),
    );
    format!("{:016x}", hash.digest())
}

/// Feeds one field with its length, so that fields cannot run together.
pub fn feed(hash: &mut Xxh3, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
