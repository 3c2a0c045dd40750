//! Data of a disk is the same in the guest and on the disk.

use guest::{Report, pattern_byte};
use lab::{Error, L1, sha256};

use crate::Test;
use crate::support::{boot_with_nvme, hashes};

pub const TESTS: &[Test] = &[
    ("data: the guest reads the contents of the disk", guest_reads_the_disk),
    ("data: the disk has what the guest writes", disk_has_the_writes),
];

const MIB: usize = 1 << 20;

fn guest_reads_the_disk(l1: &mut L1) -> Result<(), Error> {
    let expected = sha256(&l1.image(0)?[..4 * MIB]);
    let outcome = boot_with_nvme(l1, "hash:4M")?;
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    Ok(())
}

fn disk_has_the_writes(l1: &mut L1) -> Result<(), Error> {
    let before = l1.image(0)?;
    let outcome = boot_with_nvme(l1, "write:1M@8M")?;
    let after = l1.image(0)?;
    let same =
        outcome.reports.iter().any(|report| matches!(report, Report::Write { same: true, .. }));
    assert!(same, "{}", outcome.details());
    let written: Vec<u8> = (8 * MIB..9 * MIB).map(|offset| pattern_byte(offset as u64)).collect();
    assert!(after[8 * MIB..9 * MIB] == written, "the image does not hold what the guest wrote");
    assert!(
        after[..8 * MIB] == before[..8 * MIB],
        "the image has changed before what the guest wrote"
    );
    assert!(
        after[9 * MIB..] == before[9 * MIB..],
        "the image has changed after what the guest wrote"
    );
    Ok(())
}
