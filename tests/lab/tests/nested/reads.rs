//! The data path does not pass through the VMM.

use guest::Report;
use lab::{Error, L1, Outcome};

use crate::Test;
use crate::support::{boot_with_nvme, counter};

pub const TESTS: &[Test] =
    &[("10,000 reads cost no exit and no wake-up of the VMM", reads_are_free)];

const READS: u64 = 10_000;

/// Each a trap of the guest's into the VMM.
const COUNTERS: [&str; 4] = ["config_reads", "config_writes", "bar_reads", "bar_writes"];

/// The console wakes the VMM now and then, and so do the first two interrupts of a vector, until its route is
/// committed; interrupts that it had to pass on by hand for good would do so 10,000 times.
const FEW_WAKEUPS: u64 = 20 + 2;

/// Two boots differ by the reads alone, so the difference of the counters is what the reads cost.
fn reads_are_free(l1: &mut L1) -> Result<(), Error> {
    assert_eq!(
        l1.unguarded(),
        None,
        "an interrupt that comes twice would be counted, and handled by traps"
    );
    let address = l1.machine().address(0);
    let without = boot_with_nvme(l1, "read:0")?;
    let with = boot_with_nvme(l1, &format!("read:{READS}"))?;
    for name in COUNTERS {
        let path = format!("/devices/{address}/{name}");
        assert_eq!(counter(&with, &path), counter(&without, &path), "{name}\n{}", with.account());
    }
    // The main thread's, and the CPUs' that a signal brought out of the guest.
    for path in ["/wakeups", "/exits/other"] {
        let more = counter(&with, path).saturating_sub(counter(&without, path));
        assert!(more <= FEW_WAKEUPS, "{more} more of {path}\n{}", with.account());
    }
    assert_eq!(nvme_interrupts(&with), READS, "one interrupt per read\n{}", with.account());
    Ok(())
}

/// Those that the guest had from the NVMe during exactly the reads.
fn nvme_interrupts(outcome: &Outcome) -> u64 {
    let of_reads = outcome.reports.iter().find_map(|report| match report {
        Report::Read { interrupts, .. } => Some(interrupts),
        _ => None,
    });
    let of_reads = of_reads.unwrap_or_else(|| panic!("no reads\n{}", outcome.account()));
    of_reads.iter().filter(|(name, _)| name.starts_with("nvme")).map(|(_, count)| count).sum()
}
