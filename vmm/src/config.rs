//! The request of the user, as plain data: `cli` parses into it, and nothing here reads the host.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

use vfio_passthrough::ResetPolicy;
use vfio_passthrough::context::VfToken;

/// The guest to boot, and its assigned devices.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) kernel: Source,
    pub(crate) initrd: Option<Source>,
    /// Kernel parameters that follow the built-in ones.
    pub(crate) cmdline: String,
    pub(crate) cpus: u8,
    pub(crate) memory: Memory,
    /// Assigned devices, in the order of the command line.
    pub(crate) vfio: Vec<Passthrough>,
    /// The kernel's interface for the devices.
    pub(crate) iommu: Iommu,
    /// The descriptor of an inherited VFIO container; `None`: the VMM opens one.
    pub(crate) container: Option<RawFd>,
    /// The descriptor of an inherited iommufd; `None`: the VMM opens one.
    pub(crate) iommufd: Option<RawFd>,
    /// The device node of KVM.
    pub(crate) kvm: Source,
    /// The action when a device reports an uncorrectable error.
    pub(crate) on_error: OnError,
    /// Whether a reboot of the guest ends the VMM.
    pub(crate) no_reboot: bool,
    /// Whether the guest has the configuration ports 0xCF8 and 0xCFC.
    pub(crate) pci_ports: bool,
    /// The action on a system call that no list allows.
    pub(crate) seccomp: Seccomp,
    /// The path of the control socket.
    pub(crate) control: Option<PathBuf>,
    /// The room for BARs of devices that come while the guest runs; `None`: the default, as far as
    /// there is room.
    pub(crate) hot_plug_windows: Option<Windows>,
    /// The file that receives the counters at the end.
    pub(crate) stats: Option<PathBuf>,
}

/// A file to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Path(PathBuf),
    /// An inherited file descriptor: `fd=N`.
    Fd(RawFd),
}

impl Source {
    /// The inherited file descriptor, if any.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Path(_) => None,
            Self::Fd(number) => Some(*number),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Fd(number) => write!(f, "fd={number}"),
        }
    }
}

/// Guest RAM as requested: a size, or `size=SIZE` with options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) size: MemorySize,
    /// Reserved huge pages (hugetlbfs) instead of ordinary pages.
    pub(crate) hugepages: Option<HugePages>,
    /// Whether the kernel should back RAM with transparent huge pages; `None` means on, without a
    /// warning when the kernel refuses.
    pub(crate) thp: Option<bool>,
    /// Whether the VMM allocates all RAM before the guest starts; `None` means only with devices.
    pub(crate) prefault: Option<bool>,
    /// Whether RAM is a memfd, which can be mapped more than once, instead of private memory.
    pub(crate) shared: bool,
}

/// The size of reserved huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HugePages {
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl HugePages {
    /// The page size in bytes.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Size2M => 2 << 20,
            Self::Size1G => 1 << 30,
        }
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size2M => "2M",
            Self::Size1G => "1G",
        })
    }
}

impl Default for Memory {
    /// 512 MiB, without options.
    fn default() -> Self {
        Self {
            size: MemorySize(512 << 20),
            hugepages: None,
            thp: None,
            prefault: None,
            shared: false,
        }
    }
}

impl Memory {
    /// The size of RAM in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.size.bytes()
    }

    /// The alignment of RAM regions in bytes.
    pub(crate) fn page(&self) -> u64 {
        // Host and guest can both use huge pages only if a region starts on a huge page.
        self.hugepages.unwrap_or(HugePages::Size2M).bytes()
    }
}

impl fmt::Display for Memory {
    /// Formats the value as `--memory` accepts it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.size)?;
        if let Some(page) = self.hugepages {
            write!(f, ",hugepages={page}")?;
        }
        let switches = [
            ("thp", self.thp),
            ("prefault", self.prefault),
            ("shared", self.shared.then_some(true)),
        ];
        let given = switches.into_iter().filter_map(|(name, value)| Some((name, value?)));
        given.into_iter().try_for_each(|(name, value)| {
            let value = if value { "on" } else { "off" };
            write!(f, ",{name}={value}")
        })
    }
}

/// A size of RAM in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MemorySize(pub(crate) u64);

impl MemorySize {
    /// The size in bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.0 >> 20)
    }
}

/// An assigned device as requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passthrough {
    /// The sysfs path or the address; `None` if a file is passed that names the device: its node, or
    /// that of a group with no other device.
    pub(crate) path: Option<PathBuf>,
    /// The inherited file descriptor of the device's group or node.
    pub(crate) file: Option<RawFd>,
    /// Whether the device must support a reset.
    pub(crate) reset: ResetPolicy,
    /// Whether other devices may access its BARs by DMA.
    pub(crate) p2p: bool,
    /// The VF token to open it with.
    pub(crate) vf_token: Option<VfToken>,
    /// Its place on the guest's bus; `None`: the VMM chooses one.
    pub(crate) at: Option<Place>,
}

impl Passthrough {
    /// The options, each after a comma, as `--vfio` accepts them; without `fd=N`.
    pub(crate) fn options(&self) -> String {
        let reset = (self.reset == ResetPolicy::IfPossible).then(|| ",reset=none".to_owned());
        let p2p = (!self.p2p).then(|| ",p2p=off".to_owned());
        let at = self.at.map(|place| match place.function {
            None => format!(",at={:02x}", place.slot),
            Some(function) => format!(",at={:02x}.{function}", place.slot),
        });
        let token = self.vf_token.map(|token| format!(",vf-token={}", token.text()));
        [reset, p2p, at, token].into_iter().flatten().collect()
    }
}

/// A place on the guest's bus, as requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// 1 to 0x1f.
    pub(crate) slot: u8,
    /// 0 to 7; `None`: the VMM chooses one.
    pub(crate) function: Option<u8>,
}

/// The room that stays free in the guest's windows of memory BARs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Windows {
    /// The bytes for 32-bit BARs.
    pub(crate) memory32: u64,
    /// The bytes for 64-bit BARs.
    pub(crate) memory64: u64,
}

impl Default for Windows {
    /// Network cards and NVMe have 32-bit BARs of less than 1 MiB, and GPUs of 16 or 32 MiB. GPUs
    /// have 64-bit BARs as large as their memory.
    fn default() -> Self {
        Self { memory32: 256 << 20, memory64: 256 << 30 }
    }
}

/// The kernel's interface for I/O address spaces and devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Iommu {
    /// iommufd if the host has it and each device has a node of its own; otherwise type1.
    #[default]
    Auto,
    /// A VFIO container and groups.
    Type1,
    /// iommufd and the devices' own nodes.
    Iommufd,
}

/// The action when a device reports an uncorrectable error (PCIe AER).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnError {
    /// Stop the guest.
    #[default]
    Stop,
    /// Reset the device; stop the guest if the device has no reset of its own.
    Reset,
    /// Detach the device from the guest.
    Detach,
    /// Log a warning and continue.
    Report,
}

/// The action on a system call that is not on the list of its thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SeccompMode {
    /// End the VMM with a message that names the call.
    #[default]
    On,
    /// Make the call; the kernel logs it.
    Log,
    /// Install no filter.
    Off,
}

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The thread that waits for events.
    Main,
    /// A thread that runs a vCPU.
    Vcpu,
    /// The thread that serves the socket of `--control`.
    Control,
}

impl Thread {
    pub(crate) const ALL: [Self; 3] = [Self::Main, Self::Vcpu, Self::Control];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Control => "control",
        }
    }
}

/// `--seccomp`: the mode, and rows to remove from the lists for tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seccomp {
    pub(crate) mode: SeccompMode,
    pub(crate) without: Vec<(Thread, &'static str)>,
}
