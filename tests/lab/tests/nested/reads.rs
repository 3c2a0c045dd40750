//! Reads of a disk do not involve the VMM.

use guest::Report;
use lab::{Error, L1, Outcome};

use crate::Test;
use crate::support::{boot_with_nvme, counter};

pub const TESTS: &[Test] =
    &[("10,000 reads cost no exit and no wake-up of the VMM", reads_are_free)];

const READS: u64 = 10_000;

/// Counters of accesses that the VMM handles.
const COUNTERS: [&str; 4] = ["config_reads", "config_writes", "bar_reads", "bar_writes"];

/// The limit of wake-ups. The console causes up to 20, and the first two interrupts of a vector
/// cause one each, until its route is committed. If the VMM injected all interrupts itself, there
/// would be 10,000.
const FEW_WAKEUPS: u64 = 20 + 2;

/// Two boots differ only by the reads, so the difference of the counters is the cost of the reads.
fn reads_are_free(l1: &mut L1) -> Result<(), Error> {
    assert_eq!(
        l1.unguarded(),
        None,
        "without the guard, a double interrupt would be counted and handled"
    );
    let address = l1.machine().address(0);
    let without = boot_with_nvme(l1, "read:0")?;
    let with = boot_with_nvme(l1, &format!("read:{READS}"))?;
    for name in COUNTERS {
        let path = format!("/devices/{address}/{name}");
        assert_eq!(counter(&with, &path), counter(&without, &path), "{name}\n{}", with.details());
    }
    // Wake-ups of the main thread, and exits of vCPUs because of a signal.
    for path in ["/wakeups", "/exits/other"] {
        let more = counter(&with, path).saturating_sub(counter(&without, path));
        assert!(more <= FEW_WAKEUPS, "{more} more of {path}\n{}", with.details());
    }
    assert_eq!(nvme_interrupts(&with), READS, "one interrupt per read\n{}", with.details());
    Ok(())
}

/// The number of the NVMe's interrupts during the reads.
fn nvme_interrupts(outcome: &Outcome) -> u64 {
    let of_reads = outcome.reports.iter().find_map(|report| match report {
        Report::Read { interrupts, .. } => Some(interrupts),
        _ => None,
    });
    let of_reads = of_reads.unwrap_or_else(|| panic!("no reads\n{}", outcome.details()));
    of_reads.iter().filter(|(name, _)| name.starts_with("nvme")).map(|(_, count)| count).sum()
}
