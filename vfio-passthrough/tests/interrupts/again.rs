//! A kernel that starts over, as after kexec: the last one left interrupts as they were, and told nobody.

use super::*;

/// What a driver uses: the kind, and how many vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Use(u32, u16);

const USES: [Use; 5] =
    [Use(INTX, 0), Use(ON_MSI, 1), Use(ON_MSI, 4), Use(ON_MSIX, 2), Use(ON_MSIX, 6)];

/// The first message's number, of each kernel; they are never the same.
const FIRST: u16 = 0x40;
const SECOND: u16 = 0x80;

/// What Linux does at boot before any driver: both kinds are turned off (pci_msi_init, pci_msix_init), by a write
/// where they are on.
fn boot(setup: &Setup) {
    for (register, on) in [(MSI + 2, 1), (MSIX_CONTROL, ENABLE)] {
        let control = setup.read(register);
        if control & on != 0 {
            setup.write(register, control & !on);
        }
    }
}

/// What its driver does; of MSI-X all that the last one wrote to the table is still there.
fn start(setup: &Setup, Use(kind, vectors): Use, number: u16) {
    let disable_pin = if kind == INTX { 0 } else { 1 << 10 };
    setup.write(COMMAND, 0b110 | disable_pin);
    match kind {
        ON_MSI => {
            let address = 0xfee0_0000_u32.to_le_bytes();
            let _ = setup.function.config_write(MSI + 4, &address);
            setup.write(MSI + 12, number);
            setup.write(MSI + 2, 1 | (vectors.ilog2() as u16) << 4);
        }
        ON_MSIX => {
            setup.write(MSIX_CONTROL, ENABLE | FUNCTION_MASK);
            (0..6).for_each(|vector| setup.mask(vector, true));
            for vector in 0..vectors {
                let entry = u64::from(vector) * 16;
                setup.table_write(entry, &0xfee0_0000_u64.to_le_bytes());
                setup.table_write(entry + 8, &u32::from(number + vector).to_le_bytes());
            }
            setup.write(MSIX_CONTROL, ENABLE);
            (0..vectors).for_each(|vector| setup.mask(vector, false));
        }
        _ => {}
    }
}

/// The host has what this driver asked for, and what fires arrives as it said, and as nothing else.
fn check(setup: &Setup, Use(kind, vectors): Use, number: u16, flags: IrqFlags, case: &str) {
    let irqs = setup.device.irqs();
    assert_eq!(irqs.active, Some(kind), "{case}");
    assert_eq!(setup.guest.pins(), usize::from(kind == INTX), "{case}");
    let bound = match kind {
        INTX => 1,
        ON_MSIX if flags == NORESIZE => 6,
        _ => usize::from(vectors),
    };
    assert_eq!(
        (irqs.bound.len(), setup.guest.delivered().len()),
        (bound, vectors.into()),
        "{case}"
    );
    (0..6).for_each(|vector| setup.device.raise(vector).unwrap());
    let expected: BTreeMap<_, _> = (0..vectors).map(|vector| (number + vector, 1)).collect();
    assert_eq!(setup.arrived(), expected, "{case}");
}

#[test]
fn whatever_the_last_kernel_used_the_next_one_has_what_it_asks_for() {
    for flags in [DYNAMIC, NORESIZE] {
        for (first, second) in USES.iter().flat_map(|first| USES.map(|second| (*first, second))) {
            let case = format!("{first:?}, then {second:?}, {flags:?}");
            let setup = Setup::new(Some(0x0084), Some((6, flags)));
            boot(&setup);
            start(&setup, first, FIRST);
            check(&setup, first, FIRST, flags, &case);
            // Of the last one's vectors some are masked, and one of those is pending.
            setup.mask(1, true);
            setup.device.raise(1).unwrap();
            setup.arrived();
            boot(&setup);
            assert_eq!(setup.device.irqs().active, Some(INTX), "{case}: the pin, or nothing");
            assert_eq!(setup.guest.delivered().len(), 0, "{case}");
            start(&setup, second, SECOND);
            check(&setup, second, SECOND, flags, &case);
        }
    }
}
