//! The host asks for a device that came, or loses it.

use guest::Report;
use lab::{Error, L1, sha256};

use super::{INIT, add, assert_came, guest, mark, sightings};
use crate::Test;
use crate::held::Held;
use crate::support::{assigned, boot, boot_along};

/// On a machine with NVMes behind ports.
pub const ON_PORTS: &[Test] = &[
    ("hot-plug: the host's unbind lets the guest give the device back", unbound),
    ("hot-plug: the host's unplug lets the guest give the device back", unplugged),
    ("hot-plug: the host's unbind ends though the guest does not answer", unanswered),
];

/// The VMM's message.
const ASKED: &str = "the host requests the device; the guest is asked for it";
const MOST_NS: u64 = 2_000_000_000;

fn unbind(device: &str) -> Vec<String> {
    ["/init", "unbind", device].map(str::to_owned).to_vec()
}

/// The time in the agent's answer, such as `unbound in 123 ns`.
fn nanoseconds(said: &str) -> u64 {
    let number = said.strip_prefix("unbound in ").and_then(|rest| rest.trim().strip_suffix(" ns"));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("not unbound: {said}"))
}

fn unbound(l1: &mut L1) -> Result<(), Error> {
    let (device, held) = (assigned(l1, 0)?, Held::now(l1)?);
    let guest = guest("disks:1,hash:64K,mark:1,functions:1,mark:2")
        .logs(ASKED)
        .run_at(INIT, add(l1, &[&device]))
        .run_at(&mark(1), unbind(&device));
    let outcome = boot(l1, &guest)?;
    let [added, unbound] = sightings(&outcome);
    assert_came(added, &device, 1);
    let ns = nanoseconds(&unbound.said);
    println!("the unbind took {ns} ns");
    assert!(ns < MOST_NS, "{}", outcome.details());
    assert!(outcome.reports.contains(&Report::Mark { number: 2 }), "{}", outcome.details());
    assert_eq!(Held::now(l1)?, held);
    Ok(())
}

/// Linux in L1 waits 5 s before it lets the device go.
fn unplugged(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 1)?;
    let id = l1.machine().id(1);
    let expected = sha256(&l1.image(1)?[..64 << 10]);
    let guest = guest("disks:1,hash:64K,mark:1,functions:1,mark:2").logs(ASKED);
    let guest = guest.run_at(INIT, add(l1, &[&device]));
    let mut is_gone = false;
    let outcome = boot_along(l1, &guest, |monitor, printed| {
        if !is_gone && printed.contains(&mark(1)) {
            is_gone = true;
            monitor.unplug(&id)?;
            monitor.wait_unplugged(&id)?;
        }
        Ok(())
    })?;
    assert!(is_gone && outcome.reports.contains(&Report::Mark { number: 2 }));
    assert_eq!(crate::support::hashes(&outcome), [expected], "{}", outcome.details());
    l1.plug(1)
}

/// VFIO asks again after 10 s, and then the VMM detaches the device.
fn unanswered(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let silent = "console=ttyS0 panic=-1 quiet acpiphp.disable=1";
    let guest = guest("hash:64K,mark:1,pause:12000").command_line(silent).device(&device);
    let guest = guest.logs(ASKED).logs("the host requests the device; the VMM detaches it");
    let outcome = boot(l1, &guest.run_at(&mark(1), unbind(&device)))?;
    let ns = nanoseconds(&sightings::<1>(&outcome)[0].said);
    println!("the unbind took {ns} ns");
    assert!((9_000_000_000..12_000_000_000).contains(&ns), "{ns}");
    Ok(())
}
