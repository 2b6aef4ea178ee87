//! Which machines there are: the emulated processor, and KVM's own paging for its guests.

use anyhow::{Result, bail};
use clap::ValueEnum;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Processor {
    Amd,
    Intel,
}

/// What `--processor` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Processors {
    /// AMD-V, emulated by QEMU
    Amd,
    /// VT-x, emulated by Bochs: many times slower
    Intel,
    /// One after the other
    Both,
}

/// What `--npt` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Npt {
    /// Shadow paging: `kvm_amd.npt=0`
    #[value(name = "0")]
    Off,
    /// Nested paging: `kvm_amd.npt=1`
    #[value(name = "1")]
    On,
    /// One after the other
    Both,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    Amd {
        nested_paging: bool,
    },
    /// Paging is always EPT: KVM's shadow paging is tested on AMD.
    Intel,
}

impl Processors {
    pub fn each(self) -> &'static [Processor] {
        match self {
            Self::Amd => &[Processor::Amd],
            Self::Intel => &[Processor::Intel],
            Self::Both => &[Processor::Amd, Processor::Intel],
        }
    }
}

impl Variant {
    /// The machines that the two options ask for, in the order in which they run.
    pub fn chosen(processors: Processors, npt: Option<Npt>) -> Result<Vec<Self>> {
        let shadow = matches!(npt, Some(Npt::Off | Npt::Both));
        if processors == Processors::Intel && shadow {
            bail!(
                "--npt is AMD's: on Intel the rig's KVM always has nested paging (EPT); leave --npt \
                 out, or take --processor amd"
            );
        }
        let amd: &[bool] = match npt.unwrap_or(Npt::Both) {
            Npt::On => &[true],
            Npt::Off => &[false],
            Npt::Both => &[true, false],
        };
        let mut variants = Vec::new();
        for processor in processors.each() {
            match processor {
                Processor::Amd => {
                    variants.extend(amd.iter().map(|&on| Self::Amd { nested_paging: on }))
                }
                Processor::Intel => variants.push(Self::Intel),
            }
        }
        Ok(variants)
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd {
                nested_paging: true,
            } => "amd npt=1",
            Self::Amd {
                nested_paging: false,
            } => "amd npt=0",
            Self::Intel => "intel ept=1",
        }
    }

    /// In names of files.
    pub fn in_file_names(self) -> String {
        self.name().replace(' ', "-").replace('=', "")
    }

    /// The options that choose it and no other.
    pub fn options(self) -> &'static str {
        match self {
            Self::Amd {
                nested_paging: true,
            } => "--processor amd --npt 1",
            Self::Amd {
                nested_paging: false,
            } => "--processor amd --npt 0",
            Self::Intel => "--processor intel",
        }
    }

    /// How many seconds of ours a second in the rig may take at most. All bounds of what runs in the
    /// rig are in the rig's seconds; this is the one place that makes bounds for us of them.
    pub fn seconds_per_second(self) -> u32 {
        match self {
            // QEMU's clock is the host's.
            Self::Amd { .. } => 1,
            // Bochs's clock counts instructions (`bochs::PER_SECOND`): four when the rig's processor is
            // busy, and Bochs has one of ours for itself.
            Self::Intel => 15,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(processors: Processors, npt: Option<Npt>) -> Vec<&'static str> {
        let variants = Variant::chosen(processors, npt).unwrap();
        variants.into_iter().map(Variant::name).collect()
    }

    #[test]
    fn nested_paging_is_tested_before_shadow_paging_and_intel_last() {
        assert_eq!(names(Processors::Amd, None), ["amd npt=1", "amd npt=0"]);
        assert_eq!(names(Processors::Intel, None), ["intel ept=1"]);
        assert_eq!(names(Processors::Intel, Some(Npt::On)), ["intel ept=1"]);
        assert_eq!(
            names(Processors::Both, Some(Npt::Off)),
            ["amd npt=0", "intel ept=1"]
        );
    }

    #[test]
    fn shadow_paging_on_intel_is_refused() {
        for npt in [Npt::Off, Npt::Both] {
            let why = Variant::chosen(Processors::Intel, Some(npt)).unwrap_err();
            assert!(why.to_string().contains("--processor amd"), "{why}");
        }
    }

    #[test]
    fn names_of_files_have_no_blanks() {
        assert_eq!(Variant::Intel.in_file_names(), "intel-ept1");
    }
}
