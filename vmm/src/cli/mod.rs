//! The command line.

mod iommu;
mod memory;
mod on_error;
mod passthrough;
mod prepare;
mod seccomp;
mod source;
mod windows;

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, Subcommand};

use vfio_passthrough::PciAddress;

use crate::config::{Config, Iommu, Memory, OnError, Passthrough, Seccomp, Source, Windows};

pub(crate) use prepare::PrepareCommand;

/// Boots a Linux guest on KVM, with PCI devices of the host assigned to it by VFIO.
///
/// The assigned devices are the guest's disk and network card; its console is this terminal. The
/// commands prepare the host.
#[derive(Debug, Clone, Parser)]
#[command(name = "vmm", version, after_long_help = AFTER_HELP, after_help = "See --help for examples.")]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(
    override_usage = "vmm --kernel <PATH> [OPTIONS]\n       vmm <COMMAND>",
    disable_help_subcommand = true
)]
pub struct CommandLine {
    /// The command, if the line does not boot a guest.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) guest: Option<Args>,
}

/// A command that does not boot a guest.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// A command that prepares the host.
    #[command(flatten)]
    Prepare(PrepareCommand),
    /// Add devices to a running guest that was started with --control, all or none
    ///
    /// The command checks and opens the devices with its own rights, and prints their places in the
    /// guest. The guest's kernel needs ACPI hot-plug (CONFIG_HOTPLUG_PCI_ACPI), as distributions'
    /// kernels have it. Guests on aarch64 have no hot-plug.
    Add {
        /// The socket of the guest's --control option
        #[arg(value_name = "SOCKET")]
        socket: PathBuf,
        /// A device and its options, as for a guest's --vfio; may be repeated
        #[arg(
            long,
            value_name = "DEVICE[,reset=none][,p2p=off][,at=SLOT.FUNCTION][,vf-token=UUID]",
            required = true
        )]
        vfio: Vec<Passthrough>,
        /// The kernel's interface, for the first devices of a guest: auto, type1 or iommufd
        #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
        iommu: Iommu,
    },
    /// Take a device back from a running guest, with all functions in its slot
    ///
    /// The guest is asked for it. The command ends when the host has the device. A guest that reboots
    /// gives it back too, and one that has been asked loses it then even after the time-out.
    Remove {
        /// The socket of the guest's --control option
        #[arg(value_name = "SOCKET")]
        socket: PathBuf,
        /// A PCI device: its address (0000:01:00.0) or sysfs path
        #[arg(value_name = "DEVICE", value_parser = prepare::address)]
        device: PciAddress,
        /// Take it without waiting for the guest; the guest learns of it afterwards
        #[arg(long)]
        force: bool,
        /// The seconds that the guest has to give it back
        #[arg(long, value_name = "S", default_value_t = 10)]
        timeout: u64,
    },
    /// Print the counters of a running guest
    Stats {
        /// The socket of the guest's --control option
        #[arg(value_name = "SOCKET")]
        socket: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// The guest to boot, and its assigned devices.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The guest's kernel: a bzImage, or an ELF vmlinux with a PVH entry point; on aarch64 an Image
    ///
    /// Here and for --initrd and --kvm, 'fd=N' instead of a path names an inherited file
    /// descriptor. Kernel and initramfs can be pipes, which are read to their end once.
    #[arg(long, value_name = "PATH", value_parser = OsStringValueParser::new().try_map(source::parse))]
    kernel: Source,

    /// The guest's initramfs: a cpio archive, plain or compressed [default: none]
    #[arg(long, value_name = "PATH", value_parser = OsStringValueParser::new().try_map(source::parse))]
    initrd: Option<Source>,

    /// Kernel parameters; they follow the built-in ones and override them
    ///
    /// The built-in parameters are: console=ttyS0 8250.nr_uarts=1. They name the guest's only
    /// serial port.
    #[arg(
        long,
        value_name = "STR",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    cmdline: String,

    /// Virtual CPUs, 1 to 254
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=254))]
    cpus: u8,

    /// Guest RAM: its size (512M, 4G) and options
    ///
    /// SIZE, or size=SIZE, is a number of bytes, or a number with a suffix: K, M, G, T (powers of
    /// 1024); the minimum is 64M. Options: hugepages=2M or 1G uses huge pages that the host has
    /// reserved; thp=off disables transparent huge pages; shared=on uses a file in memory (memfd);
    /// prefault=on allocates all RAM before the guest starts.
    ///
    /// With --vfio the kernel pins all RAM at the start and counts it against the locked-memory
    /// limit (ulimit -l); with prefault=off the pinning allocates the RAM.
    #[arg(long, value_name = "SIZE[,OPTION]...", default_value = "512M")]
    memory: Memory,

    /// A PCI device to assign, bound to vfio-pci; can be given several times
    ///
    /// PATH is the device's sysfs path (/sys/bus/pci/devices/0000:01:00.0) or its address
    /// (0000:01:00.0). The VMM refuses a device without a reset, because the guest would see the
    /// state of its last user; 'PATH,reset=none' accepts such a device. Assigned devices can access
    /// each other's BARs by DMA (peer-to-peer) if the IOMMU maps them; 'PATH,p2p=off' denies
    /// devices this access to the BARs of this one. 'PATH,fd=N' names the inherited file descriptor of
    /// the device's group (/dev/vfio/N); 'fd=N' alone is enough if the group has no other device.
    ///
    /// Functions of one device of the host share a slot of the guest's bus and keep their function
    /// numbers; without function 0 among them, the lowest becomes function 0. Each virtual function
    /// (SR-IOV) has its own slot. 'PATH,at=SLOT.FUNCTION' chooses the place, as lspci prints it in
    /// the guest: at=05.1 is 00:05.1. 'at=SLOT' chooses the slot only. Slot 00 is the host
    /// bridge's.
    ///
    /// A virtual function whose physical function is on vfio-pci itself (enable_sriov) can only be
    /// opened with a VF token, which its user and that of the physical function share. Give
    /// 'PATH,vf-token=UUID' to the physical function first, which sets the token, then to the
    /// virtual function, in this VMM or another one. 'uuidgen' makes a UUID.
    #[arg(
        long,
        value_name = "PATH[,reset=none][,p2p=off][,at=SLOT.FUNCTION][,vf-token=UUID][,fd=N]"
    )]
    vfio: Vec<Passthrough>,

    /// The inherited file descriptor of the VFIO container (/dev/vfio/vfio) [default: the VMM opens
    /// it]
    #[arg(long, value_name = "fd=N", value_parser = source::parse_fd)]
    container: Option<RawFd>,

    /// The kernel's interface for the devices: auto, type1 or iommufd
    ///
    /// type1: a container and IOMMU groups (/dev/vfio/vfio, /dev/vfio/N). iommufd: /dev/iommu and
    /// the devices' own nodes (/dev/vfio/devices/vfioN). auto: iommufd if the host has it and each
    /// device has a node, otherwise type1.
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    iommu: Iommu,

    /// The inherited file descriptor of iommufd (/dev/iommu) [default: the VMM opens it]
    #[arg(long, value_name = "fd=N", value_parser = source::parse_fd)]
    iommufd: Option<RawFd>,

    /// The device node of KVM
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm", value_parser = OsStringValueParser::new().try_map(source::parse))]
    kvm: Source,

    /// The action when a device reports an uncorrectable error (PCIe AER)
    ///
    /// A device that the host requests, because an administrator unbinds its driver or unplugs the
    /// device, is detached at once, regardless of this option; the guest continues without it.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    on_error: OnError,

    /// End with status 0 when the guest reboots, instead of booting it again
    #[arg(long)]
    no_reboot: bool,

    /// x86-64: also provide PCI configuration by the ports 0xCF8 and 0xCFC, for kernels without ECAM
    /// (PCI_MMCONFIG)
    ///
    /// Linux prefers the ports when they exist, and takes two exits for each access instead of one.
    /// This option adds pci=noearly to the built-in kernel parameters.
    #[arg(long)]
    pci_ports: bool,

    /// The action on a system call that a running VMM does not need: on, log or off
    ///
    /// on: the VMM ends with a message that names the call. log: the kernel makes the call and logs
    /// it ('dmesg'). off: no filter. For tests of the lists, 'on,without=THREAD:CALL' removes a
    /// call from a list.
    #[arg(long, value_name = "MODE", default_value = "on")]
    seccomp: Seccomp,

    /// The path of a UNIX socket that controls the running guest [default: none]
    ///
    /// The socket speaks HTTP and accepts only the user of this process: curl --unix-socket PATH
    /// http://localhost/api/v1/vm.info, and with -X PUT vm.pause, vm.resume, vm.power-button,
    /// vm.shutdown. The guest then has slots for devices that come and go (vmm add, vmm remove),
    /// but not on aarch64.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// The room for BARs of devices that come while the guest runs [default: 32=256M,64=256G, as far
    /// as there is room]
    ///
    /// 32=SIZE is for 32-bit BARs, which lie below 4 GiB, where RAM is too; 64=SIZE is for 64-bit
    /// BARs. SIZE is a multiple of 1M. Without that room the guest does not start.
    #[arg(long, value_name = "32=SIZE,64=SIZE", requires = "control")]
    hot_plug_windows: Option<Windows>,

    /// The file that receives counters and start-up times at the end, as JSON [default: none]
    #[arg(long, value_name = "PATH")]
    stats: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Examples:
  vmm --kernel bzImage --initrd initramfs.cpio --memory 1G --cpus 2
  vmm --kernel bzImage --cmdline 'root=/dev/nvme0n1p1 rw' --vfio /sys/bus/pci/devices/0000:01:00.0
  vmm --kernel bzImage --memory size=64G,hugepages=1G --cpus 16 --vfio 0000:01:00.0
  vmm --kernel vmlinux --vfio 0000:01:00.0 --vfio 0000:02:00.0,reset=none --no-reboot
  vmm --kernel bzImage --vfio 0000:01:00.0,at=05.0 --vfio 0000:01:00.1,at=05.1

To bind a device to vfio-pci (as root), and to return it to its driver:
  vmm devices
  vmm bind 0000:01:00.0
  vmm check 0000:01:00.0
  vmm unbind 0000:01:00.0

To control a guest that was started with --control /run/vm.sock:
  vmm add /run/vm.sock --vfio 0000:01:00.0
  vmm remove /run/vm.sock 0000:01:00.0
  vmm stats /run/vm.sock
  curl --unix-socket /run/vm.sock -X PUT http://localhost/api/v1/vm.power-button

On a terminal, all keys go to the guest; Ctrl-A x ends the VMM, Ctrl-A Ctrl-A sends a Ctrl-A.

SIGUSR1 pauses the guest's vCPUs, SIGUSR2 resumes them; the devices continue to run.

RUST_LOG=info logs more than warnings; RUST_LOG=error logs less.

Exit status: 0 when the guest powers off, or reboots with --no-reboot, and when a command succeeds;
1 on an error, which stderr reports, and when a check fails; 2 for a wrong command line;
159 on a system call that is not allowed; 128 + N after signal N (SIGTERM, SIGINT, SIGHUP).";

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        Self {
            kernel: args.kernel,
            initrd: args.initrd,
            cmdline: args.cmdline,
            cpus: args.cpus,
            memory: args.memory,
            vfio: args.vfio,
            iommu: args.iommu,
            container: args.container,
            iommufd: args.iommufd,
            kvm: args.kvm,
            on_error: args.on_error,
            no_reboot: args.no_reboot,
            pci_ports: args.pci_ports,
            seccomp: args.seccomp,
            control: args.control,
            hot_plug_windows: args.hot_plug_windows,
            stats: args.stats,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn help_shows_every_option_defaults_and_examples() {
        let help = CommandLine::command().render_long_help().to_string();
        let parts = [
            "--kernel <PATH>",
            "--initrd <PATH>",
            "--cmdline <STR>",
            "--cpus <N>",
            "[default: 1]",
            "--memory <SIZE[,OPTION]...>",
            "[default: 512M]",
            "--vfio <PATH[,reset=none][,p2p=off][,at=SLOT.FUNCTION][,vf-token=UUID][,fd=N]>",
            "--kvm <PATH>",
            "[default: /dev/kvm]",
            "--on-error <WHAT>",
            "[default: stop]",
            "--no-reboot",
            "--pci-ports",
            "--stats <PATH>",
            "--control <PATH>",
            "--hot-plug-windows <32=SIZE,64=SIZE>",
            "[default: 32=256M,64=256G",
            "--seccomp <MODE>",
            "[default: on]",
            "stats ",
            "add ",
            "remove ",
            "SIGUSR1",
            "check ",
            "devices ",
            "bind ",
            "unbind ",
            "Examples:",
            "Exit status:",
        ];
        parts.iter().for_each(|part| assert!(help.contains(part), "{part:?} is not in:\n{help}"));
    }

    #[test]
    fn a_line_is_either_a_command_or_a_guest() {
        let parsed = |words: &str| CommandLine::try_parse_from(words.split(' '));
        let device = || vec!["0000:01:00.0".parse().unwrap()];
        let memory: Memory = "512M".parse().unwrap();
        let commands = [
            ("vmm devices --json", PrepareCommand::Devices { json: true }),
            ("vmm check 01:00.0", PrepareCommand::Check { devices: device(), memory, json: false }),
            (
                "vmm bind /sys/bus/pci/devices/0000:01:00.0 --force",
                PrepareCommand::Bind { devices: device(), force: true },
            ),
            ("vmm unbind 0000:01:00.0", PrepareCommand::Unbind { devices: device(), force: false }),
        ];
        for (words, command) in commands {
            let line = parsed(words).unwrap();
            assert_eq!(
                (line.command, line.guest.is_none()),
                (Some(Command::Prepare(command)), true),
                "{words}"
            );
        }
        let stats = Command::Stats { socket: "/run/vm.sock".into(), json: false };
        assert_eq!(parsed("vmm stats /run/vm.sock").unwrap().command, Some(stats));
        let guest = parsed("vmm --kernel check --vfio 01:00.0").unwrap();
        assert!(guest.command.is_none() && guest.guest.is_some());
        let wrong = [
            "vmm",
            "vmm --memory 1G",
            "vmm --kernel k check",
            "vmm bind",
            "vmm unbind",
            "vmm bind nvme0",
            "vmm repair",
        ];
        wrong.iter().for_each(|words| assert!(parsed(words).is_err(), "{words}"));
    }

    #[test]
    fn accepts_several_vfio_options_and_a_cmdline_that_starts_with_a_hyphen() {
        let words = ["vmm", "--kernel", "k", "--vfio", "a", "--vfio", "b", "--cmdline", "-- arg"];
        let args = CommandLine::try_parse_from(words).unwrap().guest.unwrap();
        let paths: Vec<_> = args.vfio.iter().map(|device| device.path.as_ref()?.to_str()).collect();
        assert_eq!(paths, [Some("a"), Some("b")]);
        assert_eq!(args.cmdline, "-- arg");
    }
}
