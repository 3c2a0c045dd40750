//! What ends the VMM before or instead of the guest: each says what, which, why, and what mends it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A fatal error.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no `/dev/kvm`, or none where `--kvm` says.
    #[error(
        "no {0}: this machine has no usable KVM\n  \
         load it with: modprobe kvm_intel (or kvm_amd); it needs VT-x or SVM switched on in the firmware, or \
         nested virtualization where this is itself a guest"
    )]
    KvmMissing(PathBuf),
    /// It may not be opened.
    #[error(
        "no permission to open {0}\n  join its group with: usermod -aG kvm $USER (then log in again), or run as root"
    )]
    KvmPermission(PathBuf),
    /// It could not be opened for another reason.
    #[error("{path} could not be opened: {source}")]
    KvmOpen {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// The kernel's KVM lacks something.
    #[error("KVM of this kernel lacks {0}, which this VMM needs")]
    KvmLacks(&'static str),
    /// A KVM call failed.
    #[error("{call} failed: {source}")]
    Kvm {
        /// The ioctl.
        call: &'static str,
        /// Its errno.
        source: kvm_ioctls::Error,
    },
    /// More CPUs than KVM offers.
    #[error("--cpus {asked}: KVM on this host offers at most {most}")]
    TooManyCpus {
        /// What was asked for.
        asked: u8,
        /// What there is.
        most: usize,
    },
    /// A file could not be opened or read.
    #[error("{what} {path}: {source}")]
    File {
        /// What the file is.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that was passed in already open is not there, or not what it should be.
    #[error("{option} fd={fd}: {why}")]
    PassedFd {
        /// Which option has it.
        option: &'static str,
        /// Its number.
        fd: i32,
        /// What is wrong.
        why: String,
    },
    /// The kernel file is no kernel.
    #[error(
        "kernel {path} is not a kernel: {why}\n  give a bzImage (arch/x86/boot/bzImage, /boot/vmlinuz-*) or an ELF vmlinux built with CONFIG_PVH"
    )]
    NotAKernel {
        /// Its path.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Something does not fit in guest RAM.
    #[error(
        "{what} does not fit in guest RAM: it needs {needs} MiB and {has} MiB are free for it\n  give the guest more with --memory"
    )]
    DoesNotFit {
        /// What.
        what: &'static str,
        /// What it needs.
        needs: u64,
        /// What there is.
        has: u64,
    },
    /// The command line is too long for the kernel.
    #[error(
        "--cmdline is too long: with the built-in parameters it has {length} bytes and this kernel takes at most {most}"
    )]
    CmdlineTooLong {
        /// Its length.
        length: usize,
        /// What the kernel takes.
        most: usize,
    },
    /// More RAM than the host has.
    #[error("--memory {asked}: this host has {has}M of memory")]
    MemoryLargerThanHost {
        /// What was asked for.
        asked: String,
        /// The host's, in MiB.
        has: u64,
    },
    /// The host has not as many huge pages.
    #[error("--memory {asked}: {why}")]
    HugePages {
        /// What was asked for.
        asked: String,
        /// What there is, and what mends it.
        why: String,
    },
    /// Guest RAM could not be had from the host.
    #[error(
        "guest RAM of {size} MiB could not be mapped: {why}\n  ask for less with --memory, or raise the limit of address space: ulimit -v unlimited"
    )]
    Ram {
        /// The region's size.
        size: u64,
        /// Why.
        why: String,
    },
    /// Writing to guest RAM failed: a region that should be there is not.
    #[error("guest RAM could not be written: {0}")]
    GuestMemory(#[from] vm_memory::GuestMemoryError),
    /// The guest's address space has no room for something.
    #[error(transparent)]
    Layout(#[from] resources::LayoutError),
    /// The PCI bus is full.
    #[error(transparent)]
    Slot(#[from] devices::SlotError),
    /// `--vfio` names no PCI device.
    #[error("--vfio: {0}")]
    DeviceAddress(#[from] vfio_passthrough::address::ParsePciAddressError),
    /// `--vfio` names a device twice.
    #[error("--vfio {0}: given twice")]
    DeviceTwice(vfio_passthrough::PciAddress),
    /// A device could not be had from VFIO.
    #[error(transparent)]
    Vfio(#[from] vfio_passthrough::context::Error),
    /// A device could not be assigned.
    #[error(transparent)]
    Function(#[from] vfio_passthrough::function::Error),
    /// A device has erred.
    #[error(
        "{address}: the device has told of an uncorrectable error (PCIe AER), so the guest is stopped: what the device did since may be \
         wrong\n  'dmesg' on the host has the error; '--on-error reset', 'detach' or 'report' lets a guest go on"
    )]
    DeviceError {
        /// The device.
        address: vfio_passthrough::PciAddress,
    },
    /// Guest RAM could not be given to the devices.
    #[error(transparent)]
    Dma(#[from] vfio_passthrough::dma::Error),
    /// Two devices at one address: a bug.
    #[error("the bus refused {what}: {source}")]
    Bus {
        /// The device.
        what: &'static str,
        /// Why.
        source: vm_device::bus::Error,
    },
    /// A system call of the VMM failed.
    #[error("{what}: {source}")]
    System {
        /// What was done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The event loop failed.
    #[error("the event loop failed: {0}")]
    Events(#[from] event_manager::Error),
    /// A virtual CPU cannot go on.
    #[error("{0}")]
    Vcpu(String),
    /// The system calls of a thread could not be limited.
    #[error(
        "{what} (seccomp) failed: {why}\n  '--seccomp off' does without, and leaves a VMM that a guest breaks into free to do anything"
    )]
    Seccomp {
        /// What was done.
        what: &'static str,
        /// Why it failed.
        why: String,
    },
    /// The kernel has Landlock and refuses its use.
    #[error(
        "the VMM could not shut itself out of the file system (Landlock): {why}\n  a process can be under 16 sets of rules at most: start it from fewer programs that make some"
    )]
    Landlock {
        /// Which call failed, and why.
        why: String,
    },
    /// The control socket could not be made.
    #[error("--control {path}: {source}{}", in_use(.source))]
    Control {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The counters could not be written.
    #[error("--stats {path}: {source}")]
    Stats {
        /// Where to.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn in_use(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "\n  another VMM listens there, or it is no socket: name another path"
        }
        _ => "",
    }
}

impl Error {
    /// Says which KVM call failed.
    pub(crate) fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { call, source }
    }

    /// Says what is wrong with a file that was passed in already open.
    pub(crate) fn passed_fd(option: &'static str, fd: i32, why: impl Into<String>) -> Self {
        let why = why.into();
        Self::PassedFd { option, fd, why }
    }

    /// Says what the VMM was doing.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}
