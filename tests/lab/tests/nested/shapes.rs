//! Guests without a device, with two devices, and with several vCPUs.

use guest::{Function, Report};
use lab::{Error, Guest, L1, Outcome, sha256};

use crate::Test;
use crate::support::{assigned, boot, hashes};

pub const TESTS: &[Test] = &[
    ("a guest boots without a device", no_device),
    ("two NVMes of two groups work in one guest", two_nvmes),
    ("a guest runs on two vCPUs", |l1| several_cpus(l1, 2)),
    ("a guest runs on 16 vCPUs", |l1| several_cpus(l1, 16)),
];

/// For arm64, whose emulation takes too long with more vCPUs.
pub const UP_TO_8_CPUS: &[Test] = &[
    ("a guest runs on 4 vCPUs", |l1| several_cpus(l1, 4)),
    ("a guest runs on 8 vCPUs", |l1| several_cpus(l1, 8)),
];

const HASHED: usize = 4 << 20;

fn no_device(l1: &mut L1) -> Result<(), Error> {
    let outcome = boot(l1, &Guest::new("look"))?;
    assert_eq!(nvmes(&outcome), [], "{}", outcome.details());
    Ok(())
}

fn two_nvmes(l1: &mut L1) -> Result<(), Error> {
    let devices = [assigned(l1, 0)?, assigned(l1, 1)?];
    let mut expected = vec![sha256(&l1.image(0)?[..HASHED]), sha256(&l1.image(1)?[..HASHED])];
    expected.sort();
    let guest = Guest::new("look,hash:4M,read:100").device(&devices[0]).device(&devices[1]);
    let outcome = boot(l1, &guest)?;
    // The guest's kernel names controllers in the order in which they are ready.
    assert_eq!(hashes(&outcome), expected, "{}", outcome.details());
    assert_eq!(nvmes(&outcome).len(), 2, "{}", outcome.details());
    Ok(())
}

fn several_cpus(l1: &mut L1, count: u32) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    // Without `quiet`: a slow machine may be silent for too long while the kernel starts its CPUs.
    let guest = Guest::new("hash:4M,read:1000").command_line("console=ttyS0 panic=-1");
    let outcome = boot(l1, &guest.device(&device).cpus(count))?;
    let Some(Report::Init { cpus, .. }) = outcome.reports.first() else {
        panic!("no first report\n{}", outcome.details());
    };
    assert_eq!(*cpus, format!("0-{}", count - 1));
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    Ok(())
}

fn nvmes(outcome: &Outcome) -> Vec<Function> {
    let functions = outcome.reports.iter().find_map(|report| match report {
        Report::Pci { functions } => Some(functions),
        _ => None,
    });
    let functions = functions.unwrap_or_else(|| panic!("no functions\n{}", outcome.details()));
    functions.iter().filter(|function| function.class == "010802").cloned().collect()
}
