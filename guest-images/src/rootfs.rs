//! The root tree: Debian packages unpacked and configured in a chroot as
//! `dpkg` does it on any machine, then our own few files.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};

use crate::apt::{Apt, Deb, Lock};
use crate::command::{run, run_lines};
use crate::error::io_error;
use crate::kernel::Kernel;
use crate::recipe::FILES;
use crate::{BuildError, Options, Progress};

/// The finished tree.
pub struct Root {
    /// Its top folder.
    pub path: PathBuf,
}

impl Root {
    /// The folder with the kernel's modules.
    pub fn modules(&self, release: &str) -> PathBuf {
        self.path.join("usr/lib/modules").join(release)
    }
}

/// Builds the tree in `work`/root.
pub fn build(
    work: &Path,
    apt: &Apt,
    lock: &Lock,
    kernel: &Kernel,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Root, BuildError> {
    umask(Mode::from_bits_truncate(0o022));
    let root = Root {
        path: work.join("root"),
    };
    skeleton(&root.path)?;
    progress(Progress::Step("Unpacking the essential packages"));
    for (done, deb) in lock.essential.iter().enumerate() {
        let mut command = Command::new("dpkg-deb");
        command
            .arg("--extract")
            .arg(apt.path_of(deb))
            .arg(&root.path);
        run(&mut command, "dpkg")?;
        progress(Progress::Amount {
            done: done as u64 + 1,
            total: lock.essential.len() as u64,
            what: "packages",
        });
    }
    devices(&root.path)?;
    progress(Progress::Step("Installing packages"));
    // The essential ones first: what other packages' scripts need.
    let total = (lock.essential.len() + lock.packages.len()) as u64;
    let mut done = 0;
    for debs in [&lock.essential, &lock.packages] {
        install(&root.path, apt, debs, &mut |line| {
            if line.starts_with("Setting up ") {
                done += 1;
                progress(Progress::Amount {
                    done,
                    total,
                    what: "packages",
                });
            }
        })?;
    }
    progress(Progress::Step("Adding the guest's own files"));
    add_modules(&root, kernel)?;
    add_files(&root.path, options)?;
    clean(&root.path)?;
    Ok(root)
}

fn io<T>(action: &'static str, path: &Path, result: std::io::Result<T>) -> Result<T, BuildError> {
    result.map_err(io_error(action, path))
}

fn make_folder(path: &Path) -> Result<(), BuildError> {
    io("create", path, fs::create_dir_all(path))
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), BuildError> {
    if let Some(parent) = path.parent() {
        make_folder(parent)?;
    }
    // A package may have put a link there; the link's target is not ours.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(io_error("replace", path)(error));
        }
        _ => (),
    }
    io("write", path, fs::write(path, text))?;
    let permissions = fs::Permissions::from_mode(mode);
    io(
        "set the mode of",
        path,
        fs::set_permissions(path, permissions),
    )
}

/// What must be there before the first package: the merged /usr of Debian 12
/// and dpkg's own files.
fn skeleton(root: &Path) -> Result<(), BuildError> {
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        make_folder(&root.join("usr").join(name))?;
        let link = root.join(name);
        io("create", &link, symlink(format!("usr/{name}"), &link))?;
    }
    for name in [
        "var/lib/dpkg/info",
        "var/lib/dpkg/updates",
        "var/cache/apt/archives",
    ] {
        make_folder(&root.join(name))?;
    }
    write(&root.join("var/lib/dpkg/status"), 0o644, "")?;
    write(&root.join("var/lib/dpkg/available"), 0o644, "")?;
    // No service may start in the chroot.
    write(
        &root.join("usr/sbin/policy-rc.d"),
        0o755,
        "#!/bin/sh\nexit 101\n",
    )?;
    let slim = "path-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n\
                path-exclude=/usr/share/doc/*\npath-include=/usr/share/doc/*/copyright\n";
    write(&root.join("etc/dpkg/dpkg.cfg.d/slim"), 0o644, slim)
}

/// Device files for the packages' scripts; the running guest has devtmpfs.
fn devices(root: &Path) -> Result<(), BuildError> {
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("random", 1, 8),
        ("urandom", 1, 9),
    ] {
        let path = root.join("dev").join(name);
        make_folder(&root.join("dev"))?;
        match mknod(
            &path,
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(0o666),
            makedev(major, minor),
        ) {
            Ok(()) | Err(Errno::EEXIST) => (),
            Err(errno) => return Err(io_error("create the device", &path)(errno.into())),
        }
        let permissions = fs::Permissions::from_mode(0o666);
        io(
            "set the mode of",
            &path,
            fs::set_permissions(&path, permissions),
        )?;
    }
    Ok(())
}

/// A command in the tree, with an environment that owes nothing to the host's.
fn chroot(root: &Path, program: &str) -> Command {
    let mut command = Command::new("chroot");
    command
        .arg(root)
        .arg(program)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("DEBCONF_NONINTERACTIVE_SEEN", "true");
    command
}

fn install(
    root: &Path,
    apt: &Apt,
    debs: &[Deb],
    line: &mut dyn FnMut(&str),
) -> Result<(), BuildError> {
    let mut command = chroot(root, "dpkg");
    command.args([
        "--force-depends",
        "--force-unsafe-io",
        "--force-confnew",
        "--install",
    ]);
    for deb in debs {
        let inside = Path::new("var/cache/apt/archives").join(&deb.file);
        let (from, to) = (apt.path_of(deb), root.join(&inside));
        if fs::hard_link(&from, &to).is_err() {
            io("copy", &from, fs::copy(&from, &to))?;
        }
        command.arg(Path::new("/").join(inside));
    }
    run_lines(&mut command, "coreutils", line)?;
    for deb in debs {
        let path = root.join("var/cache/apt/archives").join(&deb.file);
        io("delete", &path, fs::remove_file(&path))?;
    }
    Ok(())
}

fn add_modules(root: &Root, kernel: &Kernel) -> Result<(), BuildError> {
    let target = root.modules(&kernel.release);
    if let Some(parent) = target.parent() {
        make_folder(parent)?;
    }
    io(
        "move",
        &kernel.modules,
        fs::rename(&kernel.modules, &target),
    )?;
    let mut command = chroot(&root.path, "depmod");
    run(command.arg(&kernel.release), "coreutils").map(|_| ())
}

fn add_files(root: &Path, options: &Options) -> Result<(), BuildError> {
    for file in FILES {
        write(&root.join(file.path), file.mode, file.text)?;
    }
    write(
        &root.join("etc/hostname"),
        0o644,
        &format!("{}\n", options.hostname),
    )?;
    write(&root.join("etc/machine-id"), 0o644, "")?;
    make_folder(&root.join("etc/inittab.d"))?; // init asks for it at every boot
    if let Some(key) = &options.ssh_key {
        let folder = root.join("root/.ssh");
        write(
            &folder.join("authorized_keys"),
            0o600,
            &format!("{}\n", key.trim()),
        )?;
        let permissions = fs::Permissions::from_mode(0o700);
        io(
            "set the mode of",
            &folder,
            fs::set_permissions(&folder, permissions),
        )?;
    }
    let config = root.join("etc/redis/redis.conf");
    let (user, group) = redis_ids(root)?;
    io(
        "set the owner of",
        &config,
        chown(&config, Some(user), Some(group)),
    )
}

/// The ids that the redis-server package made for its user.
fn redis_ids(root: &Path) -> Result<(u32, u32), BuildError> {
    let path = root.join("etc/passwd");
    let text = io("read", &path, fs::read_to_string(&path))?;
    let ids = text
        .lines()
        .find(|l| l.starts_with("redis:"))
        .and_then(|line| {
            let mut fields = line.split(':').skip(2);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        });
    ids.ok_or_else(|| BuildError::Unexpected("the redis-server package made no user".into()))
}

/// Takes out what only the build needed.
fn clean(root: &Path) -> Result<(), BuildError> {
    let path = root.join("usr/sbin/policy-rc.d");
    io("delete", &path, fs::remove_file(&path))?;
    for name in [
        "var/cache/ldconfig/aux-cache",
        "var/log/dpkg.log",
        "var/log/alternatives.log",
        "var/lib/dpkg/status-old",
    ] {
        let path = root.join(name);
        if path.exists() {
            io("delete", &path, fs::remove_file(&path))?;
        }
    }
    Ok(())
}
