//! `/dev/vfio/vfio` as a link to `/dev/iommu`: iommufd is then the container of groups
//! (Documentation/userspace-api/iommufd.rst).
//!
//! In an earlier lab, boots on the link hung. The link is not the cause: with the guard against
//! interrupts that L2 gets twice (see the agent's `guard`), the long form boots each VMM 16 times on
//! each container, and none hangs. In an L1 whose KVM had no guard, a boot on the kernel's own
//! container hung too.

use guest::Report;
use lab::protocol::{Ending, Program, Request};
use lab::{Error, Guest, L1, place, sha256, times};

use crate::Test;
use crate::support::{self, assigned, hashes, of_functions};
use crate::with_host::qemu;

/// On a machine with an NVMe and another device, and with the host's root.
pub const TESTS: &[Test] = &[
    ("guests boot when /dev/vfio/vfio is a link to iommufd", boots),
    ("on a link to iommufd two devices work, and do no DMA to each other", two_devices),
];

/// What the guest does.
const STEPS: &str = "hash:4M,read:300,write:1M@8M,end:off";
const HASHED: usize = 4 << 20;

/// A guest that takes longer, by L1's clock, is killed and counts as hung.
const LIMIT_NS: u64 = 60_000_000_000;

const CONTAINER: &str = "/dev/vfio/vfio";
/// The kernel's own container while the link is there.
const OWN: &str = "/dev/vfio/own";
/// The VMM boots a guest, and 16 in the long form. There QEMU boots as many.
fn boots(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let vmm = vmm(&device);
    boot(l1, "vmm, own container", &vmm, times(0, 16))?;
    linked(l1, |l1| {
        boot(l1, "vmm, link", &vmm, times(1, 16))?;
        by_qemu(l1, &device, "QEMU, link", times(0, 16))
    })?;
    by_qemu(l1, &device, "QEMU, own container", times(0, 16))
}

/// iommufd refuses BARs by their virtual addresses (EFAULT), which is logged once.
fn two_devices(l1: &mut L1) -> Result<(), Error> {
    let devices = [assigned(l1, 0)?, assigned(l1, 1)?];
    let guest = devices.iter().fold(Guest::new("hash:4M"), |guest, device| guest.device(device));
    let guest = guest.arguments(["--iommu", "type1"]).logs(WARNING);
    linked(l1, |l1| {
        let expected = sha256(&l1.image(0)?[..HASHED]);
        let outcome = support::boot(l1, &guest)?;
        assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
        assert_eq!(outcome.stderr.matches(WARNING).count(), 1, "{}", outcome.details());
        assert_eq!(of_functions(&outcome, "p2p_maps"), 0, "{}", outcome.details());
        Ok(())
    })
}

const WARNING: &str = "for the DMA of other devices: cannot map";

/// Does `work` while the container is a link to iommufd.
fn linked(l1: &mut L1, work: impl FnOnce(&mut L1) -> Result<(), Error>) -> Result<(), Error> {
    l1.rename(CONTAINER, OWN)?;
    l1.perform(&Request::Link { path: CONTAINER.into(), target: "/dev/iommu".into() })?;
    let done = work(l1);
    l1.rename(OWN, CONTAINER)?;
    done
}

fn vmm(device: &str) -> Program {
    let guest = Guest::new(STEPS).device(device).arguments(["--iommu", "type1"]);
    Program { arguments: guest.vmm_arguments(), ..Program::default() }
}

fn by_qemu(l1: &mut L1, device: &str, what: &str, count: u64) -> Result<(), Error> {
    if count == 0 {
        return Ok(());
    }
    let command_line = format!("console=ttyS0 quiet panic=-1 guest.do={STEPS}");
    let files = [place::KERNEL, place::INITRD];
    let program = qemu(l1, files, &[device], "-m 512", command_line)?;
    boot(l1, what, &program, count)
}

/// Boots `count` guests, and asserts that each did its work and ended.
fn boot(l1: &mut L1, what: &str, program: &Program, count: u64) -> Result<(), Error> {
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let program = Program { signal_after: Some((LIMIT_NS, 9)), ..program.clone() };
    let mut failed = Vec::new();
    for _ in 0..count {
        let run = l1.run(program.clone())?;
        let reports = guest::reports(&run.stdout);
        let read =
            |report: &Report| matches!(report, Report::Hash { sha256, .. } if *sha256 == expected);
        let wrote = |report: &Report| matches!(report, Report::Write { same: true, .. });
        let is_good = run.finished.ending == Ending::Status(0)
            && matches!(reports.last(), Some(Report::End { .. }))
            && reports.iter().any(read)
            && reports.iter().any(wrote);
        if !is_good {
            let ending = run.finished.ending;
            failed.push(format!("{ending:?}\n{}\n{}", run.stderr, run.stdout));
        }
    }
    println!("{what}: {} of {count} guests failed", failed.len());
    assert!(failed.is_empty(), "{what}:\n{}", failed.join("\n---\n"));
    Ok(())
}
