//! The architectures of machines, and what differs between them. The rest of the lab is the same
//! for all.

mod aarch64;
mod x86_64;

use clap::ValueEnum;

use crate::Machine;
use crate::packages::Need;

/// The environment variable with the architecture of the nested tests to run; without it, that of a
/// PC.
pub const ARCH: &str = "LAB_ARCH";

/// The architecture of L1 and L2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// A PC whose CPU has SVM.
    #[default]
    #[value(name = "x86_64")]
    X86_64,
    /// QEMU's machine `virt`, whose CPU has EL2, with a GICv3, an ITS and an SMMUv3.
    Aarch64,
}

/// What differs between architectures.
pub(crate) struct Platform {
    /// What the machine is, for messages.
    pub machine: &'static str,
    /// QEMU's program.
    pub qemu: &'static str,
    /// The packages of QEMU, and those that build programs for L1.
    pub needs: &'static [Need],
    /// QEMU's arguments for the board, the CPU and the IOMMU.
    pub hardware: fn(&Machine) -> String,
    /// The kernel's command line in L1.
    pub command_line: &'static str,
    /// The modules of L1, without their dependencies.
    pub l1_modules: &'static [&'static str],
    /// The modules of L2: those of [`Device::modules`](crate::Device::modules), and of its button.
    pub l2_modules: &'static [&'static str],
    /// The modules of L2's power button.
    pub button: &'static [&'static str],
    /// Rust's name of the target of the programs in L1 and L2.
    pub target: &'static str,
    /// The examples of `vfio-passthrough` that run in L1.
    pub examples: &'static [&'static str],
    /// Cargo's variable for the linker, and the linker, if it is not the host's own.
    pub linker: Option<(&'static str, &'static str)>,
}

impl Arch {
    /// The architecture of the nested tests: see [`ARCH`].
    #[must_use]
    pub fn of_tests() -> Self {
        let name = std::env::var(ARCH).unwrap_or_default();
        Self::from_str(&name, false).unwrap_or_default()
    }

    /// The name, as `--arch` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// What the emulated machine is, for messages.
    #[must_use]
    pub fn machine(self) -> &'static str {
        self.platform().machine
    }

    /// The examples of `vfio-passthrough` that run in L1.
    #[must_use]
    pub fn examples(self) -> &'static [&'static str] {
        self.platform().examples
    }

    pub(crate) fn platform(self) -> &'static Platform {
        match self {
            Self::X86_64 => &x86_64::PLATFORM,
            Self::Aarch64 => &aarch64::PLATFORM,
        }
    }
}
