//! A NIC whose driver has an option for INTx or MSI-X. With MSI, QEMU's e1000e signals no
//! interrupts even without a VMM; `usb` tests MSI with another device.

use guest::Report;
use lab::{Error, Guest, L1};

use crate::Test;
use crate::support::{assigned, boot, counter};

pub const TESTS: &[Test] = &[
    ("an e1000e interrupts by INTx without the VMM", |l1| answers(l1, 0, "intx")),
    ("an e1000e interrupts by MSI-X without the VMM", |l1| answers(l1, 2, "msix")),
];

const ASKED: u64 = 200;

/// The limit of wake-ups and SET_IRQS calls: the console wakes the VMM, and boot and end need some.
const FEW: u64 = ASKED / 2;

/// Each ARP request is answered, and each answer comes with an interrupt that does not wake the
/// VMM.
fn answers(l1: &mut L1, mode: u8, kind: &str) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let guest = Guest::new(&format!("look,net:{ASKED}"));
    let guest = guest.command_line(&format!("console=ttyS0 quiet panic=-1 e1000e.IntMode={mode}"));
    let outcome = boot(l1, &guest.device(&device))?;
    let net = outcome.reports.iter().find_map(|report| match report {
        Report::Net { kind, answered, interrupts, .. } => Some((kind, answered, interrupts)),
        _ => None,
    });
    let (found, answered, interrupts) =
        net.unwrap_or_else(|| panic!("no network\n{}", outcome.details()));
    assert_eq!((found.as_str(), *answered), (kind, ASKED), "{}", outcome.details());
    let of_nic = interrupts.iter().filter(|(name, _)| name.starts_with("eth0"));
    let count: u64 = of_nic.map(|(_, count)| count).sum();
    assert!(count >= ASKED, "{count} interrupts\n{}", outcome.details());
    for path in ["/wakeups", "/vfio_ioctls/set_irqs"] {
        let calls = counter(&outcome, path);
        assert!(calls < FEW, "{calls} of {path}\n{}", outcome.details());
    }
    Ok(())
}
