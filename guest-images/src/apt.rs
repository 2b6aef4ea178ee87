//! A private apt: the machine's own configuration and mirrors, but with its
//! own package lists, its own (empty) idea of what is installed and its own
//! download folder, so that nothing on the host changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::run;
use crate::error::io_error;
use crate::recipe::{KERNEL_PACKAGE, SUITES};
use crate::{BuildError, Progress};

/// One package file: enough to download exactly it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deb {
    /// Package name.
    pub name: String,
    /// Package version.
    pub version: String,
    /// Name of the file in the download folder.
    pub file: String,
    /// Length in bytes.
    pub bytes: u64,
    /// `SHA256:…` as the signed package list has it.
    pub hash: String,
}

/// The exact packages that a recipe resolved to; kept in the cache, so that a
/// rebuild uses the same versions and no network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Packages that everything else takes for granted; unpacked first.
    pub essential: Vec<Deb>,
    /// The other packages of the root disk.
    pub packages: Vec<Deb>,
    /// The kernel image package.
    pub kernel: Deb,
}

impl Lock {
    /// All package files, the kernel last.
    pub fn all(&self) -> impl Iterator<Item = &Deb> {
        (self.essential.iter())
            .chain(&self.packages)
            .chain([&self.kernel])
    }
}

/// The private apt in `folder`.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Makes the folder's structure where it is missing.
    pub fn open(folder: PathBuf) -> Result<Self, BuildError> {
        for part in [
            "state/lists/partial",
            "cache/archives/partial",
            "debs",
            "empty",
        ] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        }
        let status = folder.join("status");
        fs::write(&status, "").map_err(io_error("create", &status))?;
        Ok(Self { folder })
    }

    /// Where a package file is, or will be, once downloaded.
    pub fn path_of(&self, deb: &Deb) -> PathBuf {
        self.folder.join("debs").join(&deb.file)
    }

    /// Whether the file is there in full.
    pub fn has(&self, deb: &Deb) -> bool {
        fs::metadata(self.path_of(deb)).is_ok_and(|m| m.len() == deb.bytes)
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").args(["-qq", "-y"]);
        let folder = self.folder.display();
        for option in [
            format!("Dir::State={folder}/state"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            format!("Dir::Etc::SourceList={folder}/sources.list"),
            format!("Dir::Etc::SourceParts={folder}/empty"),
            format!("Dir::Etc::Preferences={folder}/none"),
            format!("Dir::Etc::PreferencesParts={folder}/empty"),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            "APT::Default-Release=".into(),
            "APT::Install-Recommends=false".into(),
            "APT::Install-Suggests=false".into(),
            "APT::Sandbox::User=root".into(),
            "APT::Update::Error-Mode=any".into(),
            "Acquire::ForceHash=SHA256".into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=2".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Fetches the package lists of Debian 12 from where the machine's apt
    /// gets them, or from Debian's own servers if it is not set up for them.
    pub fn update(&self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), BuildError> {
        let sources = machine_sources()?;
        progress(Progress::Step("Fetching the package lists"));
        for line in sources.lines() {
            progress(Progress::Note(format!("source: {line}")));
        }
        let path = self.folder.join("sources.list");
        fs::write(&path, &sources).map_err(io_error("write", &path))?;
        let total = 10_000_000; // The lists of Debian 12, compressed, are about this long.
        let lists = self.folder.join("state/lists/partial");
        self.watched(self.apt_get().arg("update"), &lists, total, progress)
            .map_err(|e| match e {
                failed @ BuildError::Command { .. } => BuildError::NoPackageLists(Box::new(failed)),
                other => other,
            })
    }

    /// Resolves package names to exact package files with all that they need.
    pub fn resolve(&self, names: &[String]) -> Result<Lock, BuildError> {
        let essential = self.closure(&["?essential".into()])?;
        let mut wanted = vec!["?essential".to_string()];
        wanted.extend_from_slice(names);
        let mut packages = self.closure(&wanted)?;
        packages.retain(|p| !essential.contains(p));
        let kernel = self.resolve_kernel(KERNEL_PACKAGE)?;
        Ok(Lock {
            essential,
            packages,
            kernel,
        })
    }

    /// The kernel image that `package`, such as `linux-image-amd64`, stands for.
    pub fn resolve_kernel(&self, package: &str) -> Result<Deb, BuildError> {
        let kernels = self.closure(&[package.to_string()])?;
        let image = |p: &Deb| p.name.starts_with("linux-image-") && p.name != package;
        kernels
            .into_iter()
            .find(image)
            .ok_or_else(|| BuildError::Unexpected(format!("{package} depends on no kernel image")))
    }

    /// One package, without what it depends on.
    pub fn resolve_one(&self, package: &str) -> Result<Deb, BuildError> {
        let debs = self.closure(&[package.to_string()])?;
        let found = debs.into_iter().find(|p| p.name == package);
        found.ok_or_else(|| BuildError::Unexpected(format!("apt offers no {package}")))
    }

    fn closure(&self, names: &[String]) -> Result<Vec<Deb>, BuildError> {
        let mut command = self.apt_get();
        command.args(["--print-uris", "install"]).args(names);
        let mut debs: Vec<Deb> = run(&mut command, "apt")?
            .lines()
            .filter(|l| l.starts_with('\''))
            .map(parse_uri_line)
            .collect::<Result<_, _>>()?;
        debs.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(debs)
    }

    /// Downloads what is not there yet of a lock.
    pub fn download(
        &self,
        lock: &Lock,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), BuildError> {
        let all: Vec<&Deb> = lock.all().collect();
        self.download_debs(&all, progress)
    }

    /// Downloads those of `debs` that are not there yet; the last is the kernel.
    pub fn download_debs(
        &self,
        debs: &[&Deb],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), BuildError> {
        let missing: Vec<&Deb> = debs.iter().copied().filter(|d| !self.has(d)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let bytes: u64 = missing.iter().map(|d| d.bytes).sum();
        progress(Progress::Step("Downloading packages"));
        let kernel = debs.last().map(|d| format!("{} {}", d.name, d.version));
        progress(Progress::Note(format!(
            "{} packages, {:.1} MB; the kernel is {}",
            missing.len(),
            bytes as f64 / 1e6,
            kernel.unwrap_or_default()
        )));
        let debs = self.folder.join("debs");
        for deb in &missing {
            // What an interrupted download left would be taken for the rest.
            let path = self.path_of(deb);
            if path.exists() {
                fs::remove_file(&path).map_err(io_error("delete", &path))?;
            }
        }
        let mut command = self.apt_get();
        command.current_dir(&debs).arg("download");
        command.args(missing.iter().map(|d| format!("{}={}", d.name, d.version)));
        self.watched(&mut command, &debs, folder_bytes(&debs) + bytes, progress)?;
        match missing.iter().find(|d| !self.has(d)) {
            None => Ok(()),
            Some(deb) => Err(BuildError::Unexpected(format!(
                "apt said that it downloaded {} {}, but {} is not there in full",
                deb.name, deb.version, deb.file
            ))),
        }
    }

    /// Runs `command` and reports how `folder` grows towards `total` bytes.
    fn watched(
        &self,
        command: &mut Command,
        folder: &Path,
        total: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), BuildError> {
        let before = folder_bytes(folder);
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let result = run(command, "apt");
                ended.store(true, Ordering::Release);
                result
            });
            while !ended.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(100));
                progress(Progress::Amount {
                    done: folder_bytes(folder).saturating_sub(before),
                    total: total.saturating_sub(before),
                    what: "bytes",
                });
            }
            match worker.join() {
                Ok(result) => result.map(|_| ()),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.metadata().ok())
        .map(|m| m.len())
        .sum()
}

/// The lines of a sources.list with the machine's own ways to Debian 12.
fn machine_sources() -> Result<String, BuildError> {
    let mut command = Command::new("apt-get");
    let format = "$(CREATED_BY)|$(TARGET_OF)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
    command.env("LC_ALL", "C");
    let text = run(
        command.args(["--no-release-info", "indextargets", "--format", format]),
        "apt",
    )?;
    Ok(sources_from_targets(&text))
}

/// Debian's own key ring, which every Debian machine has.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub(crate) fn sources_from_targets(targets: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for target in targets.lines() {
        let fields: Vec<&str> = target.split('|').collect();
        let [created_by, target_of, uri, suite, "main"] = fields[..] else {
            continue;
        };
        let is_debian = uri.contains("debian") && !uri.contains("backports");
        if created_by != "Packages" || target_of != "deb" || !is_debian || !SUITES.contains(&suite)
        {
            continue;
        }
        let line = format!("deb [signed-by={KEYRING}] {uri} {suite} main");
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if !lines.iter().any(|l| l.ends_with(" bookworm main")) {
        lines = vec![
            format!("deb [signed-by={KEYRING}] http://deb.debian.org/debian bookworm main"),
            format!("deb [signed-by={KEYRING}] http://deb.debian.org/debian bookworm-updates main"),
            format!(
                "deb [signed-by={KEYRING}] http://deb.debian.org/debian-security bookworm-security main"
            ),
        ];
    }
    lines.join("\n") + "\n"
}

/// Parses a line of `apt-get --print-uris`: `'uri' file bytes hash`.
pub(crate) fn parse_uri_line(line: &str) -> Result<Deb, BuildError> {
    let parse = || {
        let mut fields = line.split_whitespace().skip(1);
        let file = fields.next()?;
        let bytes = fields.next()?.parse().ok()?;
        let hash = fields.next()?;
        let mut parts = file.strip_suffix(".deb")?.splitn(3, '_');
        let (name, version, _) = (parts.next()?, parts.next()?, parts.next()?);
        if file.contains('/') || !hash.starts_with("SHA256:") {
            return None;
        }
        Some(Deb {
            name: name.into(),
            version: version.replace("%3a", ":"),
            file: file.into(),
            bytes,
            hash: hash.into(),
        })
    };
    parse().ok_or_else(|| BuildError::Unexpected(format!("apt named a package as '{line}'")))
}
