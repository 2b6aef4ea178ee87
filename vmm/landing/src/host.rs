//! What the host's kernel says of its PMUs, in sysfs and procfs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// `perf_event_attr.type` of a raw event on the CPU's own PMU.
const PERF_TYPE_RAW: u32 = 4;

/// A host's root directory; another one in tests.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

/// The PMU of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pmu {
    /// `perf_event_attr.type`.
    pub kind: u32,
    /// That of an E-core.
    pub efficient: bool,
}

impl Host {
    pub fn this() -> Self {
        Self::at(Path::new("/"))
    }

    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn text(&self, path: &str) -> io::Result<String> {
        std::fs::read_to_string(self.root.join(path)).map(|text| text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<i64> {
        self.text(path).ok()?.parse().ok()
    }

    /// `kernel.perf_event_paranoid`.
    pub fn paranoid(&self) -> Option<i64> {
        self.number("proc/sys/kernel/perf_event_paranoid")
    }

    /// Whether the kernel has a PMU driver for the CPU at all.
    pub fn has_pmu(&self) -> bool {
        ["cpu", "cpu_core"]
            .iter()
            .any(|pmu| self.root.join(devices(pmu)).is_dir())
    }

    /// The PMU of `cpu`: on a hybrid part that of its type of core.
    pub fn pmu(&self, cpu: usize) -> Pmu {
        for (name, efficient) in [("cpu_core", false), ("cpu_atom", true)] {
            let device = devices(name);
            let cpus = self.text(&format!("{device}/cpus")).unwrap_or_default();
            let kind = self.number(&format!("{device}/type"));
            if let Some(kind) = kind.and_then(|kind| u32::try_from(kind).ok())
                && in_list(&cpus, cpu)
            {
                return Pmu { kind, efficient };
            }
        }
        Pmu {
            kind: PERF_TYPE_RAW,
            efficient: false,
        }
    }

    /// Whether the counters stand still in system management mode; `None`: the kernel cannot say.
    pub fn freeze_on_smi(&self) -> Option<bool> {
        ["cpu", "cpu_core"]
            .iter()
            .find_map(|pmu| self.number(&format!("sys/devices/{pmu}/freeze_on_smi")))
            .map(|value| value != 0)
    }

    /// The CPUs that are on line.
    pub fn cpus(&self) -> Vec<usize> {
        let list = self
            .text("sys/devices/system/cpu/online")
            .unwrap_or_default();
        expand(&list)
    }

    /// A model-specific register of `cpu`, through the `msr` module.
    pub fn msr(&self, cpu: usize, register: u32) -> io::Result<u64> {
        let file = File::open(self.root.join(format!("dev/cpu/{cpu}/msr")))?;
        let mut value = [0; 8];
        file.read_exact_at(&mut value, u64::from(register))?;
        Ok(u64::from_le_bytes(value))
    }
}

fn devices(pmu: &str) -> String {
    format!("sys/bus/event_source/devices/{pmu}")
}

/// The members of a list such as `0-3,8`, at most 64 Ki of them.
fn expand(list: &str) -> Vec<usize> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.trim().parse::<u16>(), to.trim().parse::<u16>()) {
            all.extend((from..=to).map(usize::from));
        }
    }
    all
}

fn in_list(list: &str, cpu: usize) -> bool {
    expand(list).contains(&cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().expect("inside the root")).expect("directory");
        std::fs::write(file, text).expect("file");
    }

    #[test]
    fn reads_a_hybrid_host() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path();
        let sys = "sys/bus/event_source/devices";
        put(root, &format!("{sys}/cpu_core/type"), "4\n");
        put(root, &format!("{sys}/cpu_core/cpus"), "0-3,6\n");
        put(root, &format!("{sys}/cpu_atom/type"), "10\n");
        put(root, &format!("{sys}/cpu_atom/cpus"), "4-5,7\n");
        put(root, "sys/devices/cpu_core/freeze_on_smi", "0\n");
        put(root, "sys/devices/system/cpu/online", "0-7\n");
        put(root, "proc/sys/kernel/perf_event_paranoid", "-1\n");
        let host = Host::at(root);
        let core = |kind, efficient| Pmu { kind, efficient };
        assert_eq!(host.pmu(6), core(4, false));
        assert_eq!(host.pmu(5), core(10, true));
        assert_eq!(host.freeze_on_smi(), Some(false));
        assert_eq!(host.cpus(), (0..8).collect::<Vec<_>>());
        assert_eq!(host.paranoid(), Some(-1));
        assert!(host.has_pmu());
    }

    #[test]
    fn a_bare_host_says_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let host = Host::at(dir.path());
        assert_eq!(host.paranoid(), None);
        assert_eq!(host.freeze_on_smi(), None);
        assert!(!host.has_pmu());
        assert!(host.cpus().is_empty());
        assert_eq!(host.pmu(0).kind, PERF_TYPE_RAW);
        assert!(host.msr(0, 0xc001_1020).is_err());
    }

    #[test]
    fn reads_an_msr_at_its_number() {
        let dir = tempfile::tempdir().expect("temporary directory");
        put(dir.path(), "dev/cpu/2/msr", "0123456789abcdef");
        let value = Host::at(dir.path()).msr(2, 4).expect("long enough");
        assert_eq!(value, u64::from_le_bytes(*b"456789ab"));
    }
}
