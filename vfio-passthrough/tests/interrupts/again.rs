//! A new kernel starts without a reset, for example after kexec. The previous kernel has left its
//! interrupts programmed.

use super::*;

/// The interrupts that a driver uses: the index, and the number of vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Use(u32, u16);

const USES: [Use; 5] =
    [Use(INTX, 0), Use(ON_MSI, 1), Use(ON_MSI, 4), Use(ON_MSIX, 2), Use(ON_MSIX, 6)];

/// The first message's number, for each of the two kernels. Their numbers differ.
const FIRST: u16 = 0x40;
const SECOND: u16 = 0x80;

/// Linux disables MSI and MSI-X at boot, before any driver, if they are enabled (pci_msi_init,
/// pci_msix_init).
fn boot(setup: &Setup) {
    for (register, on) in [(MSI + 2, 1), (MSIX_CONTROL, ENABLE)] {
        let control = setup.read(register);
        if control & on != 0 {
            setup.write(register, control & !on);
        }
    }
}

/// The driver enables its interrupts. The previous driver's entries are still in the MSI-X table.
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

/// Checks that the host has bound the driver's interrupts, and that they arrive as its messages.
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
fn a_new_kernel_gets_its_interrupts_after_any_use_of_the_previous_one() {
    for flags in [DYNAMIC, NORESIZE] {
        for (first, second) in USES.iter().flat_map(|first| USES.map(|second| (*first, second))) {
            let case = format!("{first:?}, then {second:?}, {flags:?}");
            let setup = Setup::new(Some(0x0084), Some((6, flags)));
            boot(&setup);
            start(&setup, first, FIRST);
            check(&setup, first, FIRST, flags, &case);
            // A vector of the previous kernel is masked and pending.
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
