//! What was asked for, as plain data: `cli` parses into it, and nothing here reads the host.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

use vfio_passthrough::ResetPolicy;

/// The guest to boot, and the devices to assign to it.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The guest's kernel.
    pub(crate) kernel: Source,
    /// The guest's initramfs.
    pub(crate) initrd: Option<Source>,
    /// Kernel parameters, put after the built-in ones.
    pub(crate) cmdline: String,
    /// How many CPUs the guest has.
    pub(crate) cpus: u8,
    /// RAM.
    pub(crate) memory: Memory,
    /// The devices to assign, in the order of the command line.
    pub(crate) vfio: Vec<Passthrough>,
    /// KVM's device.
    pub(crate) kvm: Source,
    /// What is done when a device reports an uncorrectable error.
    pub(crate) on_error: OnError,
    /// Whether the VMM ends when the guest reboots.
    pub(crate) no_reboot: bool,
    /// Whether the guest has the configuration ports 0xCF8 and 0xCFC.
    pub(crate) pci_ports: bool,
    /// What becomes of a system call that is on no list.
    pub(crate) seccomp: Seccomp,
    /// The control socket to make.
    pub(crate) control: Option<PathBuf>,
    /// Where to write counters at the end.
    pub(crate) stats: Option<PathBuf>,
}

/// A file to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// To be opened.
    Path(PathBuf),
    /// Open already, by this number: `fd=N`.
    Fd(RawFd),
}

impl Source {
    /// The number of one that is open.
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

/// Guest RAM, as it is asked for: a size, or `size=SIZE` with options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// How much.
    pub(crate) size: MemorySize,
    /// Reserved huge pages (hugetlbfs) in place of pages as the kernel has them.
    pub(crate) hugepages: Option<HugePages>,
    /// Whether the kernel is to make huge pages of small ones; `None`: as if on, without a warning
    /// where it does not.
    pub(crate) thp: Option<bool>,
    /// Whether all of it is to be had from the host before the guest starts; `None`: with devices.
    pub(crate) prefault: Option<bool>,
    /// Whether it is a file in memory (memfd), which can be mapped more than once, in place of this
    /// process's own memory.
    pub(crate) shared: bool,
}

/// Huge pages that the host reserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HugePages {
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl HugePages {
    /// The size of one in bytes.
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
    /// 512 MiB, plain.
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
    /// The size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.size.bytes()
    }

    /// The size in bytes of the pages that it is planned in: regions of RAM begin and end at
    /// multiples of it.
    pub(crate) fn page(&self) -> u64 {
        // A region that begins on a huge page can have huge pages in the host and in the guest
        // alike.
        self.hugepages.unwrap_or(HugePages::Size2M).bytes()
    }
}

impl fmt::Display for Memory {
    /// As it can be given.
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

/// A number of bytes of RAM.
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

/// A device to assign, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passthrough {
    /// Its sysfs path, or its address; `None` where its group is open and has no other device.
    pub(crate) path: Option<PathBuf>,
    /// The number by which its group is open.
    pub(crate) group: Option<RawFd>,
    /// What is done if it cannot be reset.
    pub(crate) reset: ResetPolicy,
    /// Whether other devices may reach its BARs by DMA.
    pub(crate) p2p: bool,
}

/// What is done when a device reports an uncorrectable error (PCIe AER).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnError {
    /// End the guest.
    #[default]
    Stop,
    /// Reset the device; as `Stop` where it has no reset of its own.
    Reset,
    /// Take the device from the guest.
    Detach,
    /// Warn, and go on.
    Report,
}

/// What becomes of a call that is not on its thread's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SeccompMode {
    /// It ends the VMM, which names it.
    #[default]
    On,
    /// It is made, and the kernel logs it.
    Log,
    /// There are no lists.
    Off,
}

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// It waits for events.
    Main,
    /// It runs a CPU of the guest.
    Vcpu,
    /// It serves the socket of `--control`.
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

/// `--seccomp`: the mode, and, for tests of the lists, calls to be taken from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seccomp {
    pub(crate) mode: SeccompMode,
    pub(crate) without: Vec<(Thread, &'static str)>,
}
