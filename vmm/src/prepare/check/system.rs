//! The checks of the host, and of the common needs of all devices.

use resources::{AddressRange, CpuReach};
use vfio_passthrough::IommuContext;
use vfio_passthrough::dma::{Error as DmaError, allow_locked_memory};

use super::super::inventory::Inventory;
use super::device::Function;
use super::driver;
use super::limits;
use super::line::Line;
use crate::config::Memory;
use crate::error::Error;
use crate::guest::arch;
use crate::guest::layout::{Later, Needs, reserved};
use crate::host::arch::{REMAPPING_REMEDY, iommu_remedy};
use crate::host::{kvm, memory};

/// Results of checks that need system calls.
#[derive(Debug)]
pub(crate) struct Probes {
    /// KVM's API version and the CPUs' address bits, or an error.
    pub(crate) kvm: Result<(i32, CpuReach), String>,
    /// Whether VFIO offers a type1v2 container, or an error.
    pub(crate) vfio: Result<(), String>,
    /// Whether the guest's memory can be locked, or an error and its remedy.
    pub(crate) locked: Result<(), (String, String)>,
    /// Whether the host has enough memory, or an error.
    pub(crate) memory: Result<(), String>,
}

impl Probes {
    /// Probes this host.
    pub(crate) fn of_this_host(memory: Memory) -> Self {
        Self {
            kvm: kvm().map_err(|error| error.to_string()),
            vfio: IommuContext::open().map(drop).map_err(|error| error.to_string()),
            locked: allow_locked_memory(memory.bytes()).map_err(|error| locked(&error)),
            memory: memory::check(memory, false).map_err(|error| error.to_string()),
        }
    }
}

fn kvm() -> Result<(i32, CpuReach), Error> {
    let kvm = kvm::open()?;
    let reach = arch::reach(&arch::supported(&kvm)?);
    Ok((kvm.get_api_version(), reach))
}

fn locked(error: &DmaError) -> (String, String) {
    match error {
        DmaError::LockedMemory { needed, limit, used } => {
            let total = needed.saturating_add(*used);
            let what = format!(
                "a guest with devices has all of its memory locked: it needs {needed} KiB, and the limit is {limit} KiB with {used} KiB in use"
            );
            let remedy = format!(
                "ulimit -l {total}; LimitMEMLOCK={total}K in a systemd unit; memlock {total} in /etc/security/limits.conf"
            );
            (what, remedy)
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
        vfio(host, probes),
        vfio_pci(host),
    ];
    let groups = host.tree.names("sys/kernel/iommu_groups").len();
    lines.push(match groups {
        0 if host.iommus().is_empty() => no_iommu(host),
        _ => Line::ok("iommu", describe_iommu(host, groups)),
    });
    lines.extend((groups != 0).then(|| remapping(host)));
    lines
}

fn vfio(host: &Inventory, probes: &Probes) -> Line {
    match &probes.vfio {
        _ if host.has_iommufd() => Line::ok("vfio", iommufd(host, probes)),
        _ if host.sysfs.lacks_groups() => Line::fail(
            "vfio",
            "this kernel's VFIO has no groups, only the nodes of devices (/dev/vfio/devices), and \
             /dev/iommu does not open",
            "modprobe iommufd; sudo chown $USER /dev/iommu; or use a kernel with CONFIG_VFIO_GROUP and \
             CONFIG_VFIO_CONTAINER",
        ),
        Ok(()) if is_link_to_iommufd(host) => Line::warning(
            "vfio",
            "/dev/vfio/vfio is a link to iommufd: guests work, but no device reaches the BAR of \
             another one by DMA",
            "use type1: sudo rm /dev/vfio/vfio; sudo mknod /dev/vfio/vfio c 10 196; sudo modprobe \
             vfio_iommu_type1; or iommufd itself: sudo chown $USER /dev/iommu /dev/vfio/devices/*",
        ),
        Ok(()) => Line::ok("vfio", "/dev/vfio/vfio opens and has a type1v2 IOMMU"),
        Err(text) => failed("vfio", text),
    }
}

/// Whether iommufd is the container of groups (Documentation/userspace-api/iommufd.rst).
fn is_link_to_iommufd(host: &Inventory) -> bool {
    let target = std::fs::read_link(host.tree.path("dev/vfio/vfio"));
    target.is_ok_and(|target| target.ends_with("iommu"))
}

fn iommufd(host: &Inventory, probes: &Probes) -> String {
    let type1 = match probes.vfio.is_ok() && !host.sysfs.lacks_groups() {
        true if is_link_to_iommufd(host) => ", and /dev/vfio/vfio is a link to it",
        true => ", and type1 is there too",
        false => "",
    };
    format!("/dev/iommu opens: devices with a node of their own are used by iommufd{type1}")
}

/// Whether `vmm bind` can load vfio-pci.
fn vfio_pci(host: &Inventory) -> Line {
    let check = "vfio-pci";
    if host.tree.path("sys/bus/pci/drivers/vfio-pci").exists() {
        return Line::ok(check, "the driver is loaded");
    }
    match driver::obstacle(&host.tree) {
        Some((what, remedy)) => Line::fail(check, what, remedy),
        None => Line::ok(check, "the driver is not loaded; 'vmm bind' loads it"),
    }
}

/// Splits an error of the VMM: the remedy is on a second line, or follows a semicolon.
fn failed(check: &'static str, text: &str) -> Line {
    let parts = text.split_once("\n  ").or_else(|| text.split_once("; "));
    let (what, remedy) = parts.unwrap_or((text, "see: dmesg | tail"));
    Line::fail(check, what, remedy)
}

fn describe_iommu(host: &Inventory, groups: usize) -> String {
    match host.iommus().as_slice() {
        [] => format!("{groups} groups"),
        units => format!("{groups} groups, by {}", units.join(", ")),
    }
}

fn no_iommu(host: &Inventory) -> Line {
    let cpu = host.tree.text("proc/cpuinfo").unwrap_or_default();
    let command_line = host.tree.line("proc/cmdline").unwrap_or_default();
    let remedy = iommu_remedy(&cpu, &command_line);
    Line::fail("iommu", "no IOMMU group exists: the kernel uses no IOMMU", remedy)
}

fn remapping(host: &Inventory) -> Line {
    let check = "interrupt-remapping";
    if host.remaps_interrupts() {
        return Line::ok(check, "the kernel remaps interrupts");
    }
    let what = "interrupt remapping is off, so a device can send any interrupt to the host";
    let firmware = REMAPPING_REMEDY;
    match host.allows_unsafe_interrupts() {
        true => Line::warning(check, format!("{what}; VFIO is configured to allow that"), firmware),
        false => Line::fail(
            check,
            format!("{what}, and VFIO refuses its group"),
            format!(
                "{firmware}; or, if you trust all guests: echo 1 > /{}",
                host.unsafe_interrupts()
            ),
        ),
    }
}

/// The lines of the common needs of all devices.
pub(crate) fn together(
    host: &Inventory,
    probes: &Probes,
    functions: &[Function],
    asked: Memory,
) -> Vec<Line> {
    let mut lines = vec![
        match &probes.memory {
            Ok(()) => Line::ok("memory", format!("the host has {asked} of memory")),
            Err(text) => {
                let (what, remedy) = text.split_once("\n  ").unwrap_or((text, "reduce --memory"));
                Line::fail("memory", what, remedy)
            }
        },
        match &probes.locked {
            Ok(()) => Line::ok("locked-memory", format!("the limit allows {asked}")),
            Err((what, remedy)) => Line::fail("locked-memory", what, remedy),
        },
    ];
    let vectors = functions.iter().map(|function| function.interrupts.most());
    lines.extend(limits::lines(host, asked, vectors));
    if let (Ok((_, cpu)), false) = (&probes.kvm, functions.is_empty()) {
        lines.push(layout(host, *cpu, functions, asked));
    }
    lines
}

/// Checks that RAM and BARs fit in the guest, below the limit of an Intel IOMMU and apart from
/// reserved regions. The kernel can still refuse the layout when it attaches the groups.
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
        later: Later::None,
    };
    match needs.plan() {
        Ok(_) => Line::ok("layout", format!("{asked} of RAM and all BARs fit in the guest")),
        Err(error) => {
            Line::fail("layout", error.to_string(), "assign fewer devices, or reduce --memory")
        }
    }
}
