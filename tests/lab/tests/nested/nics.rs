//! A NIC whose driver can be told by what to interrupt: the pin or MSI-X. (Told to use MSI, QEMU's e1000e
//! signals nothing to its host either; `usb` has a device that does.)

use guest::Report;
use lab::{Error, Guest, L1};

use crate::Test;
use crate::support::{assigned, boot, counter};

pub const TESTS: &[Test] = &[
    ("an e1000e answers by INTx", |l1| answers(l1, 0, "intx")),
    ("an e1000e answers by MSI-X", |l1| answers(l1, 2, "msix")),
];

const ASKED: u64 = 200;

/// Beside them the VMM is woken by the console, and does what a boot and an end need.
const FEW: u64 = ASKED / 2;

/// Each question is answered, and each answer comes with an interrupt, of which the VMM hears nothing.
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
        net.unwrap_or_else(|| panic!("no network\n{}", outcome.account()));
    assert_eq!((found.as_str(), *answered), (kind, ASKED), "{}", outcome.account());
    let of_nic = interrupts.iter().filter(|(name, _)| name.starts_with("eth0"));
    let count: u64 = of_nic.map(|(_, count)| count).sum();
    assert!(count >= ASKED, "{count} interrupts\n{}", outcome.account());
    for path in ["/wakeups", "/vfio_ioctls/set_irqs"] {
        let calls = counter(&outcome, path);
        assert!(calls < FEW, "{calls} of {path}\n{}", outcome.account());
    }
    Ok(())
}
