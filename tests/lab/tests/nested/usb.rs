//! A USB controller that has MSI only.

use guest::Report;
use lab::{Error, Guest, L1};

use crate::Test;
use crate::support::{assigned, boot};

pub const TESTS: &[Test] = &[("a USB controller works with MSI", finds_its_device)];

fn finds_its_device(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let outcome = boot(l1, &Guest::new("look,usb").device(&device))?;
    let usb = outcome.reports.iter().find_map(|report| match report {
        Report::Usb { devices, kinds, interrupts } => Some((devices, kinds, interrupts)),
        _ => None,
    });
    let (devices, kinds, interrupts) =
        usb.unwrap_or_else(|| panic!("no USB\n{}", outcome.details()));
    assert_eq!(
        (devices.len(), kinds.as_slice()),
        (1, &["msi".to_owned()][..]),
        "{}",
        outcome.details()
    );
    let of_controller = interrupts.get("xhci_hcd").copied().unwrap_or_default();
    assert!(of_controller > 0, "{}", outcome.details());
    Ok(())
}
