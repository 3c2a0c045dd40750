//! The guest's physical layout, on a real IOMMU.

use guest::Report;
use lab::protocol::{Ending, Program, Request};
use lab::{Error, Guest, L1, Outcome, place, sha256};

use crate::Test;
use crate::support::{assert_parts, assert_refused, assigned, boot, counter, hashes, map_calls};

pub const TESTS: &[Test] = &[
    ("layout: RAM lies around the addresses that a group reserves", around),
    ("layout: vmm check reports RAM that does not fit, as a start does", as_checked),
];

/// For an IOMMU of 39 address bits.
pub const NARROW: &[Test] =
    &[("layout: an NVMe works with its BAR within the IOMMU's reach", within_reach)];

/// For AMD's IOMMU.
pub const AMD: &[Test] = &[("layout: an NVMe works behind AMD's IOMMU", behind_amd)];

const HASHED: usize = 4 << 20;

/// Does `work` while the group of a device seems to reserve other addresses.
pub fn reserving<T>(
    l1: &mut L1,
    device: &str,
    regions: &str,
    work: impl FnOnce(&mut L1) -> Result<T, Error>,
) -> Result<T, Error> {
    let path = format!("/sys/bus/pci/devices/{device}/iommu_group/reserved_regions");
    let contents = regions.into();
    l1.perform(&Request::Cover { path: path.clone(), contents })?;
    let done = work(l1)?;
    l1.perform(&Request::Uncover { path })?;
    Ok(done)
}

/// The guest's memory map has all regions, and the device reaches them, also above 4 GiB.
fn around(l1: &mut L1) -> Result<(), Error> {
    const REGIONS: &str = "\
0x10000000 0x101fffff reserved
0x14000000 0x140fffff direct-relaxable
0x18000000 0xbfffffff reserved
";
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let guest = Guest::new("hash:4M,write:1M@8M").command_line("console=ttyS0 panic=-1");
    let guest = guest.device(&device);
    let outcome = reserving(l1, &device, REGIONS, |l1| boot(l1, &guest))?;
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    assert_eq!(counter(&outcome, "/ram_regions"), 3, "{}", outcome.details());
    assert_eq!(map_calls(&outcome), 3, "{}", outcome.details());
    let regions = [
        "[mem 0x0000000000100000-0x000000000fffffff] usable",
        "[mem 0x0000000010200000-0x0000000017ffffff] usable",
        "[mem 0x0000000100000000-0x00000001081fffff] usable",
    ];
    assert_parts(&outcome.console, &regions);
    Ok(())
}

/// The errors of a start and of `vmm check` are the same, with the same table.
fn as_checked(l1: &mut L1) -> Result<(), Error> {
    const REGIONS: &str = "0x8000000 0xffffffffffffff reserved\n";
    let device = assigned(l1, 0)?;
    let guest = Guest::new("end:off").device(&device);
    let check = [place::VMM, "check", &device].map(str::to_owned).to_vec();
    let check = Program { arguments: check, ..Program::default() };
    let (outcome, checked) =
        reserving(l1, &device, REGIONS, |l1| Ok((guest.boot(l1)?, l1.run(check)?)))?;
    assert_eq!(checked.finished.ending, Ending::Status(1), "{}", checked.stdout);
    let parts = [
        "no room in the guest's address space for 512 MiB of RAM: 384 MiB do not fit",
        "512 MiB of RAM in pages of 2 MiB",
        "BAR 0 of 0000:00:02.0 (16 KiB of 64-bit memory)",
        "reserved of IOMMU group ",
        "RAM            0x000000000000-0x000007ffffff (128 MiB)",
    ];
    assert_refused(&outcome, &parts);
    assert_parts(&checked.stdout, &parts);
    Ok(())
}

/// The check succeeds, and lists the addresses that the kernel reserves on AMD.
fn behind_amd(l1: &mut L1) -> Result<(), Error> {
    within_reach(l1)?;
    let device = l1.machine().address(0);
    let check = [place::VMM, "check", &device].map(str::to_owned).to_vec();
    let checked = l1.run(Program { arguments: check, ..Program::default() })?;
    let text = &checked.stdout;
    assert_eq!(checked.finished.ending, Ending::Status(0), "{text}");
    let parts = [
        "remaps interrupts",
        "0xfee00000-0xfeefffff (msi)",
        "0xfd00000000-0xffffffffff (reserved)",
    ];
    assert_parts(text, &parts);
    Ok(())
}

fn within_reach(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let outcome = boot(l1, &Guest::new("look,hash:4M,write:1M@8M,read:100").device(&device))?;
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    let last = last_bar(&outcome).unwrap_or_else(|| panic!("no BAR\n{}", outcome.details()));
    assert!(last < 1 << 39, "{}", outcome.details());
    Ok(())
}

/// The highest address of the BARs in the guest.
fn last_bar(outcome: &Outcome) -> Option<u64> {
    let functions = outcome.reports.iter().find_map(|report| match report {
        Report::Pci { functions } => Some(functions),
        _ => None,
    })?;
    let bars = functions.iter().flat_map(|function| &function.bars);
    bars.map(|(_, last)| *last).max()
}
