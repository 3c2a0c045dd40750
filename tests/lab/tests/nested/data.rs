//! Data arrives as it was sent, both ways.

use guest::{Report, pattern_byte};
use lab::{Error, L1, sha256};

use crate::Test;
use crate::support::{boot_with_nvme, hashes};

pub const TESTS: &[Test] = &[
    ("the guest reads what is on the disk", reads_what_is_there),
    ("what the guest writes is on the disk", writes_arrive),
];

const MIB: usize = 1 << 20;

fn reads_what_is_there(l1: &mut L1) -> Result<(), Error> {
    let expected = sha256(&l1.image(0)?[..4 * MIB]);
    let outcome = boot_with_nvme(l1, "hash:4M")?;
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.account());
    Ok(())
}

fn writes_arrive(l1: &mut L1) -> Result<(), Error> {
    let before = l1.image(0)?;
    let outcome = boot_with_nvme(l1, "write:1M@8M")?;
    let after = l1.image(0)?;
    let same =
        outcome.reports.iter().any(|report| matches!(report, Report::Write { same: true, .. }));
    assert!(same, "{}", outcome.account());
    let written: Vec<u8> = (8 * MIB..9 * MIB).map(|offset| pattern_byte(offset as u64)).collect();
    assert!(after[8 * MIB..9 * MIB] == written, "the image does not hold what the guest wrote");
    assert!(
        after[..8 * MIB] == before[..8 * MIB],
        "the image has changed before what the guest wrote"
    );
    assert!(
        after[9 * MIB..] == before[9 * MIB..],
        "the image has changed behind what the guest wrote"
    );
    Ok(())
}
