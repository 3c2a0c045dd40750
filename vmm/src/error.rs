//! Fatal errors of the VMM. Each text says what failed, for which object, why, and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A fatal error.
#[derive(Debug, Error)]
pub enum Error {
    /// `/dev/kvm`, or the path of `--kvm`, does not exist.
    #[error("no {path}: this machine has no usable KVM\n  {remedy}")]
    KvmMissing {
        /// The path of the device node.
        path: PathBuf,
        /// How this architecture gets it.
        remedy: &'static str,
    },
    /// The user lacks permission to open `/dev/kvm`.
    #[error(
        "no permission to open {0}\n  \
         join its group with: usermod -aG kvm $USER (then log in again), or run the VMM as root"
    )]
    KvmPermission(PathBuf),
    /// The device cgroup of the process denies `/dev/kvm`.
    #[error(
        "opening {0} is not permitted: the device cgroup of this process denies it\n  \
         start the container with '--device {0}', or set 'DeviceAllow={0} rw' in the systemd unit"
    )]
    KvmDenied(PathBuf),
    /// `/dev/kvm` could not be opened for another reason.
    #[error("{path} could not be opened: {source}")]
    KvmOpen {
        /// The path of the device node.
        path: PathBuf,
        /// The errno.
        source: kvm_ioctls::Error,
    },
    /// The kernel's KVM lacks a required capability.
    #[error(
        "KVM of this kernel lacks {what}, which this VMM requires\n  boot Linux {least} or newer"
    )]
    KvmLacks {
        /// The capability.
        what: &'static str,
        /// The oldest Linux that has it.
        least: &'static str,
    },
    /// A KVM call failed.
    #[error("{call} failed: {source}")]
    Kvm {
        /// The name of the ioctl.
        call: &'static str,
        /// The errno.
        source: kvm_ioctls::Error,
    },
    /// `--cpus` exceeds the limit of KVM.
    #[error("--cpus {asked}: KVM on this host supports at most {most}")]
    TooManyCpus {
        /// The requested number.
        asked: u8,
        /// The limit of KVM.
        most: usize,
    },
    /// The file of `--kvm` is not KVM's device node.
    #[error("--kvm {0}: this is not KVM's device node\n  give /dev/kvm, which is the default")]
    NotKvm(PathBuf),
    /// A file could not be opened or read.
    #[error("{what} {path}: {source}{}", file_remedy(.what, .path, .source))]
    File {
        /// The purpose of the file.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file is of a kind, or of a content, that no guest boots from.
    #[error("{what} {path}: {why}")]
    BootFile {
        /// The purpose of the file.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The cause and its remedy.
        why: String,
    },
    /// A passed file descriptor is not open, or refers to a file of the wrong kind.
    #[error("{option} fd={fd}: {why}")]
    PassedFd {
        /// The option that names the descriptor.
        option: &'static str,
        /// The descriptor.
        fd: i32,
        /// The cause.
        why: String,
    },
    /// A passed descriptor is not for the chosen interface.
    #[error("{option} is not used with --iommu {iommu}: leave one of them out")]
    OtherIommu {
        /// The option that passes the descriptor.
        option: &'static str,
        /// The chosen interface.
        iommu: &'static str,
    },
    /// The kernel file has an unsupported format.
    #[error("kernel {path} is not a kernel: {why}\n  {remedy}")]
    NotAKernel {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        why: String,
        /// The remedy.
        remedy: String,
    },
    /// An option has no meaning on this architecture.
    #[error("{option} does not work on this architecture: {why}")]
    NotOnThisArch {
        /// The option.
        option: &'static str,
        /// The cause.
        why: &'static str,
    },
    /// A device cannot come or leave while the guest runs.
    #[error(
        "this machine has no hot-plug: it is described by a device tree, and hot-plug needs ACPI\n  \
         start the guest with its devices (--vfio)"
    )]
    NoHotPlug,
    /// The device tree could not be made.
    #[error("making the guest's device tree failed: {0}; this is a bug of the VMM")]
    DeviceTree(String),
    /// An image does not fit in guest RAM.
    #[error(
        "{what} does not fit in guest RAM: it needs {needs} MiB, and only {has} MiB are free for it\n  \
         give the guest more RAM with --memory: {least}M at least"
    )]
    DoesNotFit {
        /// The name of the image.
        what: &'static str,
        /// The required size in MiB.
        needs: u64,
        /// The available size in MiB.
        has: u64,
        /// The least size of RAM that could be enough, in MiB.
        least: u64,
    },
    /// The kernel takes an initramfs only at low addresses, and more RAM would lie above them.
    #[error(
        "the initrd does not fit: it needs {needs} MiB, and this kernel takes it only below \
         {limit} MiB, where {has} MiB are free in one piece\n  \
         more --memory does not help: make the initrd smaller (its files can be on a disk), or {remedy}"
    )]
    InitrdTooHigh {
        /// The required size in MiB.
        needs: u64,
        /// The available size in MiB.
        has: u64,
        /// The limit of the kernel in MiB.
        limit: u64,
        /// A kernel with a higher limit.
        remedy: &'static str,
    },
    /// The command line is longer than the kernel accepts.
    #[error(
        "--cmdline is too long: with the built-in parameters it has {length} bytes, and this kernel \
         accepts at most {most}"
    )]
    CmdlineTooLong {
        /// The length in bytes, with the built-in parameters.
        length: usize,
        /// The kernel's limit in bytes.
        most: usize,
    },
    /// `--memory` exceeds the host's RAM.
    #[error("--memory {asked}: this host has only {has}M of memory")]
    MemoryLargerThanHost {
        /// The requested memory.
        asked: String,
        /// The host's RAM in MiB.
        has: u64,
    },
    /// The host has too few free huge pages.
    #[error("--memory {asked}: {why}")]
    HugePages {
        /// The requested memory.
        asked: String,
        /// The shortage and its remedy.
        why: String,
    },
    /// A limit of the host is too low for the guest.
    #[error("{what}\n  {remedy}")]
    Limit {
        /// What is needed, and what the host has.
        what: String,
        /// The command that raises the limit.
        remedy: String,
    },
    /// A thread did not start.
    #[error(
        "a vCPU thread could not start: {source}\n  \
         the VMM needs {needed} threads; raise what limits them: 'ulimit -u' (RLIMIT_NPROC), \
         pids.max of the control group ('TasksMax=' in a systemd unit), or \
         /proc/sys/kernel/threads-max"
    )]
    Thread {
        /// The number of threads that the VMM needs.
        needed: u64,
        /// The errno of `clone`.
        source: io::Error,
    },
    /// KVM has too few memory slots for the guest's RAM.
    #[error("guest RAM needs {needed} memory slots, and KVM on this host has {most}")]
    TooFewSlots {
        /// The number of regions of RAM.
        needed: usize,
        /// The limit of KVM.
        most: usize,
    },
    /// Guest RAM could not be mapped.
    #[error(
        "guest RAM of {size} MiB could not be mapped: {why}\n  \
         reduce --memory, or raise the limit of the address space with: ulimit -v unlimited"
    )]
    Ram {
        /// The size of the region in MiB.
        size: u64,
        /// The cause.
        why: String,
    },
    /// A write to guest RAM failed, because a region that was planned is missing.
    #[error("guest RAM could not be written: {0}")]
    GuestMemory(#[from] vm_memory::GuestMemoryError),
    /// The guest's address space has no space for an item.
    #[error(transparent)]
    Layout(#[from] resources::LayoutError),
    /// The windows of a running guest have no room for a BAR of a device that comes.
    #[error("{}\n  {}", .0, more_room(.0))]
    NoRoom(#[from] resources::NoRoom),
    /// The PCI bus has no free slot.
    #[error(transparent)]
    Slot(#[from] devices::SlotError),
    /// The assigned functions cannot be placed on the guest's bus.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The value of `--vfio` is not a PCI device.
    #[error("--vfio: {0}")]
    DeviceAddress(#[from] vfio_passthrough::address::ParsePciAddressError),
    /// Two `--vfio` options name the same device.
    #[error("--vfio {0}: given twice")]
    DeviceTwice(vfio_passthrough::PciAddress),
    /// The running guest has the device.
    #[error("{address}: the guest has this device already; 'vmm remove' takes it back")]
    AlreadyAssigned {
        /// The device.
        address: vfio_passthrough::PciAddress,
    },
    /// The running guest does not have the device.
    #[error(
        "{address}: the guest does not have this device; 'vmm stats' and vm.devices list those it has"
    )]
    NotAssigned {
        /// The device.
        address: vfio_passthrough::PciAddress,
    },
    /// The running guest's RAM lies where the device's IOMMU cannot map it.
    #[error(
        "{address}: the guest's RAM lies at {range}, which its IOMMU group reserves ({kind}): only a \
         guest that starts with the device has its RAM elsewhere"
    )]
    ReservedRam {
        /// The device.
        address: vfio_passthrough::PciAddress,
        /// The reserved addresses.
        range: resources::AddressRange,
        /// What they are reserved for.
        kind: vfio_passthrough::backend::sysfs::ReservedKind,
    },
    /// The request has devices of another kind than the guest.
    #[error("the guest uses its devices by {is}: the files of a request must be of the same kind")]
    OtherKind {
        /// The guest's interface.
        is: &'static str,
    },
    /// The first devices of a guest come without a container or iommufd.
    #[error(
        "the guest has no devices yet: the request needs a file of the container, or of iommufd"
    )]
    NoContainer,
    /// VFIO refused a device.
    #[error("{}{}", .0, token_option(.0))]
    Vfio(#[from] vfio_passthrough::context::Error),
    /// A device could not be assigned.
    #[error(transparent)]
    Function(#[from] vfio_passthrough::function::Error),
    /// A device reported an error.
    #[error(
        "{address}: the device reported an uncorrectable error (PCIe AER), so the VMM stops the guest: \
         data that the device wrote since may be wrong\n  \
         'dmesg' on the host shows the error; '--on-error reset', 'detach' or 'report' keeps a guest running"
    )]
    DeviceError {
        /// The address of the device.
        address: vfio_passthrough::PciAddress,
    },
    /// Guest RAM could not be mapped for DMA of the devices.
    #[error(transparent)]
    Dma(#[from] vfio_passthrough::dma::Error),
    /// A running VMM may not lock all of its guest's RAM.
    #[error(
        "{source}\n  the guest runs already: 'prlimit --pid {pid} --memlock={bytes}' as root raises \
         the limit of its VMM"
    )]
    LockedMemory {
        /// The limit, and what is needed.
        source: vfio_passthrough::dma::Error,
        /// The VMM.
        pid: u32,
        /// The limit that is needed.
        bytes: u64,
    },
    /// Two devices claim the same address: a bug.
    #[error("the bus refused {what}: {source}")]
    Bus {
        /// The name of the device.
        what: &'static str,
        /// The cause.
        source: vm_device::bus::Error,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The operation.
        what: &'static str,
        /// The errno.
        source: io::Error,
    },
    /// The event loop failed.
    #[error("the event loop failed: {0}")]
    Events(#[from] event_manager::Error),
    /// A vCPU cannot continue.
    #[error("{0}")]
    Vcpu(String),
    /// A seccomp filter could not be installed.
    #[error(
        "{what} (seccomp) failed: {why}\n  \
         '--seccomp off' runs without filters; a guest that breaks into the VMM can then make every \
         system call"
    )]
    Seccomp {
        /// The operation.
        what: &'static str,
        /// The cause.
        why: String,
    },
    /// The kernel supports Landlock and refuses the rules.
    #[error(
        "the VMM could not restrict its own file access (Landlock): {why}\n  \
         a process can have at most 16 Landlock layers: start the VMM from fewer programs that add one"
    )]
    Landlock {
        /// The call that failed, and the cause.
        why: String,
    },
    /// The control socket could not be created.
    #[error("--control {path}: {source}{}", socket_remedy(.source))]
    Control {
        /// The path of the socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The counters could not be written.
    #[error("--stats {path}: {source}")]
    Stats {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Why the assigned functions cannot be placed on the guest's bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlaceError {
    /// Two functions have the same place.
    #[error(
        "--vfio {second}: place {place} of the guest's bus is already taken by {first}\n  \
         give one of them another place with: --vfio ADDRESS,at=SLOT.FUNCTION"
    )]
    Taken {
        /// The place.
        place: devices::DevFn,
        /// The function that has it.
        first: vfio_passthrough::PciAddress,
        /// The function that comes second.
        second: vfio_passthrough::PciAddress,
    },
    /// A running guest has a device in the slot.
    #[error(
        "--vfio {address}: slot {slot:02x} of the guest's bus has a device that the guest has not \
         given back\n  give another slot, or leave at= out"
    )]
    SlotTaken {
        /// The function.
        address: vfio_passthrough::PciAddress,
        /// The slot.
        slot: u8,
    },
    /// A guest looks for functions 1 to 7 of a slot only if function 0 exists.
    #[error(
        "--vfio {address}: at {place} a guest does not find it, because its slot has no function 0 \
         (PCI 3.0, 3.2.2.3.4)\n  \
         put a function at {slot:02x}.0 with: --vfio ADDRESS,at={slot:02x}.0",
        slot = place.slot()
    )]
    NoFunction0 {
        /// The function.
        address: vfio_passthrough::PciAddress,
        /// Its place.
        place: devices::DevFn,
    },
    /// Too many devices.
    #[error(
        "--vfio {0}: all slots of the guest's bus are taken: it has 31 besides that of the host \
         bridge\n  \
         several functions fit in one slot with: --vfio ADDRESS,at=SLOT.FUNCTION"
    )]
    Full(vfio_passthrough::PciAddress),
}

fn socket_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "\n  another VMM listens on this socket, or the file is not a socket: choose another path"
        }
        io::ErrorKind::NotFound => "\n  its folder must exist: make it with mkdir -p",
        io::ErrorKind::PermissionDenied => "\n  choose a folder that the user of the VMM may write",
        io::ErrorKind::InvalidInput => "\n  choose a path of at most 107 bytes (unix(7))",
        _ => "",
    }
}

fn file_remedy(what: &str, path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("\n  to see which files are there: ls {folder}"),
        io::ErrorKind::PermissionDenied => format!(
            "\n  let the user of the VMM read it (chmod, setfacl), or pass it open from a shell that \
             may: --{what} fd=3 3<{shown}"
        ),
        _ => String::new(),
    }
}

/// How to give a device a VF token.
/// How a guest gets room for BARs.
fn more_room(shortage: &resources::NoRoom) -> String {
    let option = match shortage.bar.space {
        resources::BarSpace::Io => return "remove a device that has ports".to_owned(),
        resources::BarSpace::Memory32 => "32",
        resources::BarSpace::Memory64 => "64",
    };
    let mib = shortage.needed.div_ceil(1 << 20);
    format!("start the guest with --hot-plug-windows {option}={mib}M, or remove a device")
}

fn token_option(error: &vfio_passthrough::context::Error) -> String {
    use vfio_passthrough::context::{Error, VfTokenProblem};
    let Error::VfToken { address, physical, problem } = error else {
        return String::new();
    };
    let physical = physical.map(|physical| format!("--vfio {physical},vf-token=UUID, then with "));
    match problem {
        VfTokenProblem::Missing | VfTokenProblem::Wrong => {
            let first = physical.unwrap_or_default();
            format!(
                "\n  open it with: {first}--vfio {address},vf-token=UUID ('uuidgen' makes a UUID)"
            )
        }
        VfTokenProblem::NotTaken => format!("\n  give: --vfio {address}"),
        _ => String::new(),
    }
}

impl Error {
    /// An error of the KVM ioctl `call`.
    pub(crate) fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { call, source }
    }

    /// An error of a passed file descriptor.
    pub(crate) fn passed_fd(option: &'static str, fd: i32, why: impl Into<String>) -> Self {
        let why = why.into();
        Self::PassedFd { option, fd, why }
    }

    /// An error of the operation `what`.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}
