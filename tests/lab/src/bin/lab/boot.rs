//! `cargo lab boot`.

use clap::Args;
use guest::Report;
use lab::{Echo, Error, Guest, Iommu, Kernel, L1, Lab, Machine, Outcome, say, sha256};

#[derive(Args)]
pub struct Arguments {
    /// What L1 and L2 run.
    #[arg(long, value_enum, default_value_t = Kernel::Stock612)]
    kernel: Kernel,
    /// The guest's RAM (512M, 1G).
    #[arg(long, default_value = "512M")]
    memory: String,
    /// The guest's vCPUs.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// How many bits an address has in the IOMMU.
    #[arg(long, default_value_t = 48)]
    iommu_bits: u8,
    /// The IOMMU is AMD's, in place of Intel's.
    #[arg(long, conflicts_with = "iommu_bits")]
    amd_iommu: bool,
    /// What the guest's init does.
    #[arg(long, default_value = "look,hash:4M,write:1M@8M,read:1000,end:off")]
    steps: String,
    /// Shows the VMM's counters at the end, as JSON.
    #[arg(long)]
    counters: bool,
    /// More arguments for vmm.
    #[arg(last = true)]
    vmm: Vec<String>,
}

/// Boots L1 and L2 in the user's sight, and says how it went.
pub fn boot(arguments: &Arguments) -> Result<bool, Error> {
    let lab = Lab::set_up()?;
    let machine = Machine::new(arguments.kernel).iommu(match arguments.amd_iommu {
        true => Iommu::Amd,
        false => Iommu::Intel { address_bits: arguments.iommu_bits },
    });
    lab.kernel(arguments.kernel)?;
    say(&format!(
        "booting L1: QEMU emulates a PC with an IOMMU and an NVMe; it runs {}",
        arguments.kernel.name()
    ));
    let mut l1 = L1::boot(&lab, &machine, Echo::Shown)?;
    say(&format!("L1 is ready after {}", seconds(l1.ready_ns())));
    if let Some(why) = l1.unguarded() {
        say(&format!("L2 may get an interrupt twice, and hang (no guard: {why})"));
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
        // Not quiet: here somebody watches.
        .command_line("console=ttyS0 panic=-1")
        .device(&format!("/sys/bus/pci/devices/{device}"))
        .cpus(arguments.cpus)
        .memory(&arguments.memory)
        .arguments(&arguments.vmm)
}

/// The command as one would type it.
fn shown(guest: &Guest) -> String {
    let quoted = |word: String| {
        if word.contains(' ') { format!("'{word}'") } else { word }
    };
    guest.vmm_arguments().into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// No step failed, and what the guest read is what the disk holds.
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

/// In words.
fn summary(arguments: &Arguments, outcome: &Outcome, disk: &[u8]) -> String {
    let took = seconds(outcome.finished.elapsed_ns);
    let end = match (outcome.is_success(), is_sound(outcome, disk)) {
        (true, true) => "and all of it went well",
        (true, false) => "but not all that it did went well",
        (false, _) => "but it did not end as it should",
    };
    let mut lines = vec![format!(
        "the guest (L2: {} vCPU, {}, one NVMe assigned) ran for {took} of L1's time, {end}:",
        arguments.cpus, arguments.memory
    )];
    lines.extend(outcome.reports.iter().filter_map(|report| in_words(report, disk)));
    lines.push(format!("  vmm ended by {:?}", outcome.finished.ending));
    lines.join("\n")
}

fn in_words(report: &Report, disk: &[u8]) -> Option<String> {
    Some(match report {
        Report::Init { uptime_ns, cpus, memory_kib } => {
            let ready = seconds(*uptime_ns);
            format!(
                "  its init ran {ready} after its kernel's start, on CPUs {cpus}, with {memory_kib} KiB of RAM"
            )
        }
        Report::Pci { functions } => format!("  it sees {} PCI functions", functions.len()),
        Report::Hash { disk: name, bytes, sha256: found } => {
            let same =
                if *found == hash_of(disk, *bytes) { "the same as" } else { "NOT the same as" };
            format!(
                "  the first {bytes} bytes of {name} have {same} the SHA-256 of the host's image"
            )
        }
        Report::Write { disk, bytes, same, .. } => {
            let same = if *same { "the same" } else { "something ELSE" };
            format!("  it wrote {bytes} bytes to {disk} and read back {same}")
        }
        Report::Read { disk, reads, median_ns, interrupts, .. } => {
            let interrupts: u64 = interrupts.values().copied().fold(0, u64::saturating_add);
            let median = median_ns / 1000;
            format!(
                "  {reads} reads of 4 KiB from {disk}: {median} us each (median), {interrupts} interrupts"
            )
        }
        Report::Error { what } => format!("  it FAILED: {what}"),
        Report::Net { interface, kind, asked, answered, .. } => {
            format!("  {answered} of {asked} questions on {interface} ({kind}) were answered")
        }
        Report::Usb { devices, kinds, .. } => {
            format!(
                "  {} USB devices at controllers that interrupt by {}",
                devices.len(),
                kinds.join(", ")
            )
        }
        // The end, and steps that only tests ask for.
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
    fn a_wrong_hash_is_said() {
        let report = Report::Hash { disk: "nvme0n1".into(), bytes: 4, sha256: sha256(b"abcd") };
        assert!(in_words(&report, b"abcdefgh").unwrap().contains("the same as"));
        assert!(in_words(&report, b"abcXefgh").unwrap().contains("NOT the same as"));
    }

    #[test]
    fn a_guest_without_controllers_is_not_shown_as_one_with() {
        let report = Report::Error { what: "no NVMe disk came up".into() };
        assert!(in_words(&report, b"").unwrap().contains("no NVMe disk came up"));
    }
}
