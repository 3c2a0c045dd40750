//! USB controllers: one that has MSI only, and two that are functions of one device.

use guest::{Interrupts, Report};
use lab::{Device, Error, Guest, L1, Outcome};

use crate::Test;
use crate::support::{VFIO, assert_refused, assigned, boot};

pub const TESTS: &[Test] = &[
    ("a USB controller works with MSI", finds_its_device),
    ("functions: two of one device share a slot, and have their own pins", two_functions),
    ("functions: one is placed where at= says, and a place has one", places),
];

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

/// Binds both functions to vfio-pci.
fn uhcis(l1: &mut L1) -> Result<[String; 2], Error> {
    let first = l1.machine().address_of(Device::TwoUhcis);
    let second = format!("{}1", first.strip_suffix('0').unwrap_or_default());
    l1.bind(&first, VFIO)?;
    l1.bind(&second, VFIO)?;
    Ok([first, second])
}

/// Boots a guest with both functions, whose drivers both find their tablets by interrupts.
/// Returns address and ID of each in the guest.
fn boot_with(l1: &mut L1, functions: [&str; 2]) -> Result<Vec<(String, String)>, Error> {
    let guest = Guest::new("look,usb:2,interrupts");
    let guest = functions.iter().fold(guest, |guest, own| guest.device_without_reset(own));
    let outcome = boot(l1, &guest)?;
    let tablets = outcome.reports.iter().find_map(|report| match report {
        Report::Usb { devices, .. } => Some(devices.len()),
        _ => None,
    });
    assert_eq!(tablets, Some(2), "{}", outcome.details());
    let with_intx = |report: &Report| match report {
        Report::Interrupts { functions } => {
            let works = |own: &&Interrupts| own.kind == "intx" && own.count > 0;
            functions.iter().filter(works).count()
        }
        _ => 0,
    };
    let working: usize = outcome.reports.iter().map(with_intx).sum();
    assert_eq!(working, 2, "{}", outcome.details());
    Ok(seen(&outcome))
}

fn seen(outcome: &Outcome) -> Vec<(String, String)> {
    let functions = outcome.reports.iter().find_map(|report| match report {
        Report::Pci { functions } => Some(functions.clone()),
        _ => None,
    });
    let functions = functions.into_iter().flatten().map(|own| (own.address, own.id));
    functions.filter(|(_, id)| id.starts_with("8086:")).collect()
}

fn pair(address: &str, id: &str) -> (String, String) {
    (address.to_owned(), id.to_owned())
}

/// The functions are named in the other order than their numbers.
fn two_functions(l1: &mut L1) -> Result<(), Error> {
    let [first, second] = uhcis(l1)?;
    let seen = boot_with(l1, [&second, &first])?;
    assert_eq!(seen, [pair("0000:00:01.0", "8086:2934"), pair("0000:00:01.1", "8086:2935")]);
    Ok(())
}

fn places(l1: &mut L1) -> Result<(), Error> {
    let [first, second] = uhcis(l1)?;
    let at = |device: &str, place: &str| format!("{device},at={place}");
    let seen = boot_with(l1, [&at(&first, "1f.7"), &at(&second, "1f.0")])?;
    assert_eq!(seen, [pair("0000:00:1f.0", "8086:2935"), pair("0000:00:1f.7", "8086:2934")]);
    let twice = Guest::new("look").device(&at(&first, "05.0")).device(&at(&second, "05.0"));
    let taken =
        format!("--vfio {second}: place 05.0 of the guest's bus is already taken by {first}");
    assert_refused(&twice.boot(l1)?, &[&taken]);
    let alone = Guest::new("look").device(&at(&second, "05.1"));
    let not_found = format!("--vfio {second}: at 05.1 a guest does not find it");
    assert_refused(&alone.boot(l1)?, &[&not_found, "--vfio ADDRESS,at=05.0"]);
    Ok(())
}
