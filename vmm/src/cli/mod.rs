//! The command line.

mod memory;
mod on_error;
mod passthrough;
mod prepare;
mod seccomp;
mod source;

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, Subcommand};

use crate::config::{Config, Memory, OnError, Passthrough, Seccomp, Source};

pub(crate) use prepare::PrepareCommand;

/// Boots a Linux guest on KVM, with PCI devices of the host assigned to it by VFIO.
///
/// The guest's disk and network card are the assigned devices; its console is this terminal. The
/// commands prepare the host for that.
#[derive(Debug, Clone, Parser)]
#[command(name = "vmm", version, after_long_help = AFTER_HELP, after_help = "See --help for examples.")]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(
    override_usage = "vmm --kernel <PATH> [OPTIONS]\n       vmm <COMMAND>",
    disable_help_subcommand = true
)]
pub struct CommandLine {
    /// What to do in place of booting a guest.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// The guest.
    #[command(flatten)]
    pub(crate) guest: Option<Args>,
}

/// A command in place of booting a guest.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// One that prepares the host.
    #[command(flatten)]
    Prepare(PrepareCommand),
    /// Print the counters of a guest that runs
    Stats {
        /// The socket that its VMM was given by --control
        #[arg(value_name = "SOCKET")]
        socket: PathBuf,
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
}

/// The guest to boot, and the devices to assign to it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The guest's kernel: a bzImage, or an ELF vmlinux with a PVH entry point
    ///
    /// 'fd=N' in place of a path, here and for --initrd and --kvm, is a file that was passed in
    /// already open.
    #[arg(long, value_name = "PATH", value_parser = OsStringValueParser::new().try_map(source::parse))]
    kernel: Source,

    /// The guest's initramfs [default: none]
    #[arg(long, value_name = "PATH", value_parser = OsStringValueParser::new().try_map(source::parse))]
    initrd: Option<Source>,

    /// Kernel parameters, put after the built-in ones so that they win
    ///
    /// The built-in ones are: console=ttyS0 8250.nr_uarts=1. They name the guest's only serial
    /// port.
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

    /// Guest RAM: its size (512M, 4G), and of what it is made
    ///
    /// SIZE, or size=SIZE, is in bytes, or with a suffix: K, M, G, T (powers of 1024); at least
    /// 64M. Options: hugepages=2M or 1G takes it from the huge pages that the host has reserved;
    /// thp=off keeps the kernel from making huge pages of small ones; shared=on makes it a file in
    /// memory (memfd); prefault=on has all of it from the host before the guest starts.
    ///
    /// With --vfio all of it is pinned in the host's memory at start, and counts against the
    /// locked-memory limit (ulimit -l); prefault=off then leaves it to the pinning to get it.
    #[arg(long, value_name = "SIZE[,OPTION]...", default_value = "512M")]
    memory: Memory,

    /// A PCI device to assign, bound to vfio-pci; may be given several times
    ///
    /// Its sysfs path (/sys/bus/pci/devices/0000:01:00.0) or its address (0000:01:00.0). A device
    /// that cannot be reset is refused, since the guest would get it in the state in which its last
    /// user left it; 'PATH,reset=none' takes it so. Assigned devices reach each other's BARs by DMA
    /// (peer-to-peer) where the IOMMU maps them; 'PATH,p2p=off' keeps the others from those of this
    /// one. 'PATH,fd=N', or 'fd=N' where its group has no other device: the group's node
    /// (/dev/vfio/N) was passed in already open.
    #[arg(long, value_name = "PATH[,reset=none][,p2p=off][,fd=N]")]
    vfio: Vec<Passthrough>,

    /// KVM's device
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm", value_parser = OsStringValueParser::new().try_map(source::parse))]
    kvm: Source,

    /// What is done when a device has told of an uncorrectable error (PCIe AER)
    ///
    /// A device that the host asks for, since its driver is unbound or it is unplugged, is detached
    /// at once, whatever this says: the guest goes on, and finds a dead device.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    on_error: OnError,

    /// End when the guest reboots, with status 0, in place of booting it again
    #[arg(long)]
    no_reboot: bool,

    /// Offer PCI configuration by the ports 0xCF8 and 0xCFC too, for kernels without ECAM
    /// (PCI_MMCONFIG)
    ///
    /// Linux prefers the ports where they are there, at two exits an access instead of one. Adds
    /// pci=noearly to the built-in kernel parameters.
    #[arg(long)]
    pci_ports: bool,

    /// What becomes of a system call that the VMM does not need once the guest runs: on, log or off
    ///
    /// on: it ends the VMM with a message that names it. log: it is made, and the kernel logs it
    /// ('dmesg'). off: nothing. For tests of the lists, 'on,without=THREAD:CALL' takes a call from
    /// one.
    #[arg(long, value_name = "MODE", default_value = "on")]
    seccomp: Seccomp,

    /// A UNIX socket to make, by which the guest can be looked at and controlled while it runs
    /// [default: none]
    ///
    /// It speaks HTTP, for the user of this process only: curl --unix-socket PATH
    /// http://localhost/api/v1/vm.info, and with -X PUT vm.pause, vm.resume, vm.power-button,
    /// vm.shutdown.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Where to write counters and start-up times at the end, as JSON [default: nowhere]
    #[arg(long, value_name = "PATH")]
    stats: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Examples:
  vmm --kernel bzImage --initrd initramfs.cpio --memory 1G --cpus 2
  vmm --kernel bzImage --cmdline 'root=/dev/nvme0n1p1 rw' --vfio /sys/bus/pci/devices/0000:01:00.0
  vmm --kernel bzImage --memory size=64G,hugepages=1G --cpus 16 --vfio 0000:01:00.0
  vmm --kernel vmlinux --vfio 0000:01:00.0 --vfio 0000:02:00.0,reset=none --no-reboot

To hand a device to VFIO first (as root), and back:
  vmm devices
  vmm bind 0000:01:00.0
  vmm check 0000:01:00.0
  vmm unbind 0000:01:00.0

To control a guest that was started with --control /run/vm.sock:
  vmm stats /run/vm.sock
  curl --unix-socket /run/vm.sock -X PUT http://localhost/api/v1/vm.power-button

On a terminal, all keys go to the guest; Ctrl-A x ends the VMM, Ctrl-A Ctrl-A sends a Ctrl-A.

SIGUSR1 pauses the guest's CPUs, SIGUSR2 lets them go on; its devices are not paused.

RUST_LOG=info says more than warnings; RUST_LOG=error says less.

Exit status: 0 when the guest powers off, or reboots with --no-reboot, and when a command has done
what it says; 1 on an error, which is told on stderr, and when a check fails;
2 for a wrong command line; 159 on a system call that is not allowed; 128 + N when ended by signal N (SIGTERM, SIGINT, SIGHUP).";

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        Self {
            kernel: args.kernel,
            initrd: args.initrd,
            cmdline: args.cmdline,
            cpus: args.cpus,
            memory: args.memory,
            vfio: args.vfio,
            kvm: args.kvm,
            on_error: args.on_error,
            no_reboot: args.no_reboot,
            pci_ports: args.pci_ports,
            seccomp: args.seccomp,
            control: args.control,
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
    fn help_has_every_option_a_default_and_an_example() {
        let help = CommandLine::command().render_long_help().to_string();
        let parts = [
            "--kernel <PATH>",
            "--initrd <PATH>",
            "--cmdline <STR>",
            "--cpus <N>",
            "[default: 1]",
            "--memory <SIZE[,OPTION]...>",
            "[default: 512M]",
            "--vfio <PATH[,reset=none][,p2p=off][,fd=N]>",
            "--kvm <PATH>",
            "[default: /dev/kvm]",
            "--on-error <WHAT>",
            "[default: stop]",
            "--no-reboot",
            "--pci-ports",
            "--stats <PATH>",
            "--control <PATH>",
            "--seccomp <MODE>",
            "[default: on]",
            "stats ",
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
    fn a_line_is_a_command_or_a_guest_and_never_both() {
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
            "vmm mend",
        ];
        wrong.iter().for_each(|words| assert!(parsed(words).is_err(), "{words}"));
    }

    #[test]
    fn vfio_repeats_and_a_cmdline_may_start_with_a_hyphen() {
        let words = ["vmm", "--kernel", "k", "--vfio", "a", "--vfio", "b", "--cmdline", "-- arg"];
        let args = CommandLine::try_parse_from(words).unwrap().guest.unwrap();
        let paths: Vec<_> = args.vfio.iter().map(|device| device.path.as_ref()?.to_str()).collect();
        assert_eq!(paths, [Some("a"), Some("b")]);
        assert_eq!(args.cmdline, "-- arg");
    }
}
