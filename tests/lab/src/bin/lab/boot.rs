//! `cargo lab boot`: one nested boot, with its output shown.

use clap::Args;
use guest::Report;
use lab::{Arch, Echo, Error, Guest, Iommu, Kernel, L1, Lab, Machine, Outcome, say, sha256};

#[derive(Args)]
pub struct Arguments {
    /// The architecture of L1 and L2 [default: that of the kernel, or x86_64]
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// The kernel of L1 and L2 [default: Debian's 6.12 of the architecture]
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// The guest's RAM, such as 512M or 1G.
    #[arg(long, default_value = "512M")]
    memory: String,
    /// The number of vCPUs of the guest.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// The width of addresses of the IOMMU in bits.
    #[arg(long, default_value_t = 48)]
    iommu_bits: u8,
    /// Use AMD's IOMMU instead of Intel's.
    #[arg(long, conflicts_with = "iommu_bits")]
    amd_iommu: bool,
    /// The steps of the guest's init (see tests/guest/src/plan.rs).
    #[arg(long, default_value = "look,hash:4M,write:1M@8M,read:1000,end:off")]
    steps: String,
    /// Print the VMM's counters at the end, as JSON.
    #[arg(long)]
    counters: bool,
    /// More arguments for vmm.
    #[arg(last = true)]
    vmm: Vec<String>,
}

/// Boots L1 and L2, prints their output and a summary; returns whether all steps succeeded.
pub fn boot(arguments: &Arguments) -> Result<bool, Error> {
    let kernel = Kernel::chosen(arguments.arch, arguments.kernel)?;
    let arch = kernel.arch();
    let lab = Lab::set_up(arch)?;
    let machine = Machine::new(kernel).iommu(match arguments.amd_iommu {
        true => Iommu::Amd,
        false => Iommu::Intel { address_bits: arguments.iommu_bits },
    });
    lab.kernel(kernel)?;
    say(&format!(
        "booting L1: QEMU emulates {}, and an NVMe; it runs {}",
        arch.machine(),
        kernel.name()
    ));
    let mut l1 = L1::boot(&lab, &machine, Echo::Shown)?;
    say(&format!("L1 is ready after {}", seconds(l1.ready_ns())));
    if let Some(why) = l1.unguarded() {
        say(&format!("warning: L2 may get an interrupt twice and hang (no guard: {why})"));
    }
    let device = machine.address(0);
    l1.bind(&device, Some("vfio-pci"))?;
    let guest = guest(arguments, &device);
    say(&format!("{device} is bound to vfio-pci; L1 runs: {}", shown(&guest)));
    let before = l1.image(0)?;
    let outcome = guest.boot(&mut l1)?;
    if arguments.counters {
        println!("{:#}", outcome.stats);
    }
    say(&summary(arguments, &outcome, &before));
    Ok(outcome.is_success() && is_sound(&outcome, &before))
}

fn guest(arguments: &Arguments, device: &str) -> Guest {
    Guest::new(&arguments.steps)
        // Without `quiet`, so that the user sees the guest's kernel.
        .command_line("console=ttyS0 panic=-1")
        .device(&format!("/sys/bus/pci/devices/{device}"))
        .cpus(arguments.cpus)
        .memory(&arguments.memory)
        .arguments(&arguments.vmm)
}

/// The VMM's command line, with quotes, for messages.
fn shown(guest: &Guest) -> String {
    let quoted = |word: String| {
        if word.contains(' ') { format!("'{word}'") } else { word }
    };
    guest.vmm_arguments().into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Whether no step failed and the guest read the contents of the disk.
fn is_sound(outcome: &Outcome, disk: &[u8]) -> bool {
    outcome.reports.iter().all(|report| match report {
        Report::Error { .. } => false,
        Report::Hash { bytes, sha256: found, .. } => *found == hash_of(disk, *bytes),
        Report::Write { same, .. } => *same,
        _ => true,
    })
}

fn hash_of(disk: &[u8], bytes: u64) -> String {
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    sha256(disk.get(..length).unwrap_or(disk))
}

/// The summary of the boot as text.
fn summary(arguments: &Arguments, outcome: &Outcome, disk: &[u8]) -> String {
    let took = seconds(outcome.finished.elapsed_ns);
    let end = match (outcome.is_success(), is_sound(outcome, disk)) {
        (true, true) => "and all steps succeeded",
        (true, false) => "but a step FAILED",
        (false, _) => "but it did NOT end as expected",
    };
    let mut lines = vec![format!(
        "the guest (L2: {} vCPU, {}, one assigned NVMe) ran for {took} of L1's time, {end}:",
        arguments.cpus, arguments.memory
    )];
    lines.extend(outcome.reports.iter().filter_map(|report| in_words(report, disk)));
    lines.push(format!("  vmm ended with {:?}", outcome.finished.ending));
    lines.join("\n")
}

fn in_words(report: &Report, disk: &[u8]) -> Option<String> {
    Some(match report {
        Report::Init { uptime_ns, cpus, memory_kib } => {
            let ready = seconds(*uptime_ns);
            format!(
                "  its init started {ready} after its kernel, on CPUs {cpus}, with {memory_kib} KiB \
                 of RAM"
            )
        }
        Report::Pci { functions } => format!("  it sees {} PCI functions", functions.len()),
        Report::Hash { disk: name, bytes, sha256: found } => {
            let is = if *found == hash_of(disk, *bytes) { "equals" } else { "does NOT equal" };
            format!("  the SHA-256 of the first {bytes} bytes of {name} {is} that of the image")
        }
        Report::Write { disk, bytes, same, .. } => {
            let same = if *same { "the same" } else { "OTHER" };
            format!("  it wrote {bytes} bytes to {disk} and read back {same} data")
        }
        Report::Read { disk, reads, median_ns, interrupts, .. } => {
            let interrupts: u64 = interrupts.values().copied().fold(0, u64::saturating_add);
            let median = median_ns / 1000;
            format!(
                "  {reads} reads of 4 KiB from {disk}: {median} us each (median), {interrupts} interrupts"
            )
        }
        Report::Error { what } => format!("  a step FAILED: {what}"),
        Report::Net { interface, kind, asked, answered, .. } => {
            format!("  {answered} of {asked} ARP requests on {interface} ({kind}) were answered")
        }
        Report::Usb { devices, kinds, .. } => {
            format!(
                "  {} USB devices; their controllers interrupt by {}",
                devices.len(),
                kinds.join(", ")
            )
        }
        // The end, and steps of tests.
        _ => return None,
    })
}

fn seconds(nanoseconds: u64) -> String {
    format!("{:.2} s", std::time::Duration::from_nanos(nanoseconds).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_reports_a_wrong_hash() {
        let report = Report::Hash { disk: "nvme0n1".into(), bytes: 4, sha256: sha256(b"abcd") };
        assert!(in_words(&report, b"abcdefgh").unwrap().contains(" equals "));
        assert!(in_words(&report, b"abcXefgh").unwrap().contains(" does NOT equal "));
    }

    #[test]
    fn summary_reports_a_failed_step() {
        let report = Report::Error { what: "disks are missing: 0 of 1 appeared".into() };
        assert!(in_words(&report, b"").unwrap().contains("FAILED: disks are missing"));
    }
}
