//! The checks of the host, and of what all devices need together.

use resources::{AddressRange, CpuReach};
use vfio_passthrough::IommuContext;
use vfio_passthrough::dma::{Error as DmaError, allow_locked_memory};

use super::super::inventory::Inventory;
use super::device::Function;
use super::facts::open_files;
use super::line::Line;
use crate::config::Memory;
use crate::error::Error;
use crate::guest::cpuid;
use crate::guest::layout::{Needs, reserved};
use crate::host::{kvm, memory};

/// What only calls can tell, asked once.
#[derive(Debug)]
pub(crate) struct Probes {
    /// KVM's API version, and what the guest's CPUs reach; or what to say.
    pub(crate) kvm: Result<(i32, CpuReach), String>,
    /// Whether there is a container with a type1v2 IOMMU; or what to say.
    pub(crate) vfio: Result<(), String>,
    /// Whether the guest's memory may be locked; or what to say, and what mends it.
    pub(crate) locked: Result<(), (String, String)>,
    /// Whether the host has so much memory; or what to say.
    pub(crate) memory: Result<(), String>,
}

impl Probes {
    /// Asks this host.
    pub(crate) fn of_this_host(memory: Memory) -> Self {
        Self {
            kvm: kvm().map_err(|error| error.to_string()),
            vfio: IommuContext::open().map(drop).map_err(|error| error.to_string()),
            locked: allow_locked_memory(memory.bytes()).map_err(|error| locked(&error)),
            memory: memory::check(memory).map_err(|error| error.to_string()),
        }
    }
}

fn kvm() -> Result<(i32, CpuReach), Error> {
    let kvm = kvm::open()?;
    let reach = cpuid::reach(&cpuid::supported(&kvm)?);
    Ok((kvm.get_api_version(), reach))
}

fn locked(error: &DmaError) -> (String, String) {
    match error {
        DmaError::LockedMemory { needed, limit, used } => {
            let total = needed.saturating_add(*used);
            let what = format!(
                "a guest with devices has all of its memory locked: {needed} KiB, and the limit is {limit} KiB with {used} KiB in use"
            );
            let mend = format!(
                "ulimit -l {total}; LimitMEMLOCK={total}K in a systemd unit; memlock {total} in /etc/security/limits.conf"
            );
            (what, mend)
        }
        other => (other.to_string(), "ulimit -l unlimited".to_owned()),
    }
}

/// The lines of the host.
pub(crate) fn lines(host: &Inventory, probes: &Probes) -> Vec<Line> {
    let mut lines = vec![
        match &probes.kvm {
            Ok((version, cpu)) => {
                let bits = cpu.address_bits;
                let what = format!(
                    "/dev/kvm opens: API version {version}, {bits} address bits for guests"
                );
                Line::ok("kvm", what)
            }
            Err(text) => failed("kvm", text),
        },
        match &probes.vfio {
            Ok(()) => Line::ok("vfio", "/dev/vfio/vfio opens and has a type1v2 IOMMU"),
            Err(text) => failed("vfio", text),
        },
    ];
    let groups = host.tree.names("sys/kernel/iommu_groups").len();
    lines.push(match groups {
        0 => no_iommu(host),
        _ => Line::ok("iommu", told_iommu(host, groups)),
    });
    lines.extend((groups != 0).then(|| remapping(host)));
    lines
}

/// Messages of the VMM's have what mends it on a second line, or behind a semicolon.
fn failed(check: &'static str, text: &str) -> Line {
    let parts = text.split_once("\n  ").or_else(|| text.split_once("; "));
    let (what, mend) = parts.unwrap_or((text, "see: dmesg | tail"));
    Line::fail(check, what, mend)
}

fn told_iommu(host: &Inventory, groups: usize) -> String {
    match host.tree.names("sys/class/iommu").as_slice() {
        [] => format!("{groups} groups"),
        units => format!("{groups} groups, by {}", units.join(", ")),
    }
}

fn no_iommu(host: &Inventory) -> Line {
    let cpu = host.tree.text("proc/cpuinfo").unwrap_or_default();
    let command_line = host.tree.line("proc/cmdline").unwrap_or_default();
    let mend = match () {
        () if cpu.contains("AuthenticAMD") => {
            "turn on AMD-Vi (IOMMU) in the firmware, and take amd_iommu=off and iommu=off from the kernel's command line"
        }
        () if command_line.contains("intel_iommu=on") => "turn on VT-d in the firmware",
        () => "turn on VT-d in the firmware, and put intel_iommu=on on the kernel's command line",
    };
    Line::fail("iommu", "there is no IOMMU group: the kernel uses no IOMMU", mend)
}

const UNSAFE: &str = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";

/// VFIO refuses groups whose devices could write any interrupt (vfio_iommu_type1_attach_group). The
/// kernel names its remapped interrupts so on both makes of IOMMU
/// (drivers/iommu/intel/irq_remapping.c, amd/iommu.c).
fn remapping(host: &Inventory) -> Line {
    let interrupts = host.tree.text("proc/interrupts").unwrap_or_default();
    let check = "interrupt-remapping";
    if interrupts.contains(" IR-") {
        return Line::ok(check, "the kernel remaps interrupts");
    }
    let allowed = host.tree.line(UNSAFE).is_some_and(|line| line.starts_with(['Y', '1']));
    let what = "the kernel remaps no interrupts, so a device can send the host any";
    let firmware = "turn on interrupt remapping (x2APIC) in the firmware, and take intremap=off from the kernel's command line";
    match allowed {
        true => Line::warning(check, format!("{what}; VFIO is told to allow that"), firmware),
        false => Line::fail(
            check,
            format!("{what}, and VFIO refuses its group"),
            format!("{firmware}; or, if all guests are trusted: echo 1 > /{UNSAFE}"),
        ),
    }
}

/// Files that the VMM has open anyway, with room to spare.
const FILES: u64 = 64;
/// And of each device, besides its vectors.
const FILES_OF_DEVICE: u64 = 8;

/// The lines of what all devices need together.
pub(crate) fn together(
    host: &Inventory,
    probes: &Probes,
    functions: &[Function],
    asked: Memory,
) -> Vec<Line> {
    let limits = host.tree.text("proc/self/limits").unwrap_or_default();
    let mut lines = vec![
        match &probes.memory {
            Ok(()) => Line::ok("memory", format!("the host has {asked} for the guest")),
            Err(text) => {
                let (what, mend) =
                    text.split_once("\n  ").unwrap_or((text, "ask for less with --memory"));
                Line::fail("memory", what, mend)
            }
        },
        match &probes.locked {
            Ok(()) => Line::ok("locked-memory", format!("{asked} may be locked")),
            Err((what, mend)) => Line::fail("locked-memory", what, mend),
        },
        files(open_files(&limits), functions),
    ];
    if let (Ok((_, cpu)), false) = (&probes.kvm, functions.is_empty()) {
        lines.push(layout(host, *cpu, functions, asked));
    }
    lines
}

/// Each vector is an eventfd.
fn files(limit: Option<u64>, functions: &[Function]) -> Line {
    let vectors = functions.iter().map(|function| function.interrupts.most());
    let needed = vectors
        .map(|vectors| vectors.saturating_add(FILES_OF_DEVICE))
        .fold(FILES, u64::saturating_add);
    match limit {
        Some(limit) if limit < needed => Line::fail(
            "open-files",
            format!("up to {needed} files are opened, and the limit is {limit}"),
            format!("ulimit -n {needed}"),
        ),
        _ => {
            Line::ok("open-files", format!("up to {needed} are opened, which is within the limit"))
        }
    }
}

/// Whether RAM and BARs have a place in the guest, within what an IOMMU of Intel's translates and
/// clear of what the groups reserve. The kernel has the last word when the groups are attached.
fn layout(host: &Inventory, cpu: CpuReach, functions: &[Function], asked: Memory) -> Line {
    let bars: Vec<_> = functions.iter().flat_map(|f| f.bars.clone()).collect();
    let reserved = reserved(&host.sysfs, functions.iter().map(|f| f.address));
    let translated = functions.iter().filter_map(|f| f.translated_bits).min();
    let end = translated.and_then(|bits| 1_u64.checked_shl(bits.into()));
    let aperture = end.map(|end| [AddressRange::new(0, end)]);
    let needs = Needs {
        memory: asked,
        cpu,
        apertures: aperture.as_ref().map(<[_; 1]>::as_slice),
        reserved: &reserved,
        bars: &bars,
    };
    match needs.plan() {
        Ok(_) => {
            Line::ok("layout", format!("{asked} of RAM and all BARs have a place in the guest"))
        }
        Err(error) => Line::fail(
            "layout",
            error.to_string(),
            "give away fewer devices, or ask for less --memory",
        ),
    }
}
