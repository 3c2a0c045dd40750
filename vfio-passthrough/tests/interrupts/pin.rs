//! Tests of the INTx pin: level, acknowledgement, Interrupt Disable and Interrupt Status.

use super::*;

const INTERRUPT_STATUS: u16 = 1 << 3;
const ON: u16 = 0b110;
const INTX_DISABLE: u16 = 1 << 10;

#[test]
fn a_pin_that_stays_asserted_fires_again_after_each_acknowledgement() {
    let setup = Setup::new(None, None);
    setup.write(COMMAND, ON);
    setup.device.assert_pin(true).unwrap();
    assert_eq!(setup.guest.pin_fired(), 1);
    setup.device.resample().unwrap();
    assert_eq!(setup.guest.pin_fired(), 0, "not acknowledged");
    setup.guest.acknowledge_pin();
    setup.device.resample().unwrap();
    assert_eq!(setup.guest.pin_fired(), 1);
    setup.device.assert_pin(false).unwrap();
    setup.guest.acknowledge_pin();
    setup.device.resample().unwrap();
    assert_eq!(setup.guest.pin_fired(), 0);
}

#[test]
fn interrupt_disable_stops_the_pin_and_not_interrupt_status() {
    let setup = Setup::new(None, None);
    setup.write(COMMAND, ON | INTX_DISABLE);
    setup.device.assert_pin(true).unwrap();
    assert_eq!(setup.guest.pin_fired(), 0);
    assert_eq!(setup.read(STATUS) & INTERRUPT_STATUS, INTERRUPT_STATUS);
    assert_eq!(setup.read(COMMAND), ON | INTX_DISABLE);
    setup.write(COMMAND, ON);
    assert_eq!(setup.guest.pin_fired(), 1);
    assert_eq!(setup.set_irqs(), 2, "bound and unmasked once");
    setup.device.assert_pin(false).unwrap();
    assert_eq!(setup.read(STATUS) & INTERRUPT_STATUS, 0);
}

#[test]
fn a_pin_asserted_during_msix_fires_when_msix_is_disabled() {
    let setup = Setup::new(Some(0), Some((4, DYNAMIC)));
    setup.write(COMMAND, ON);
    setup.write(MSIX_CONTROL, ENABLE);
    setup.device.assert_pin(true).unwrap();
    assert_eq!((setup.device.irqs().active, setup.guest.pin_fired()), (Some(ON_MSIX), 0));
    setup.write(MSIX_CONTROL, 0);
    assert_eq!((setup.device.irqs().active, setup.guest.pin_fired()), (Some(INTX), 1));
}

#[test]
fn only_an_acknowledgement_unmasks_the_pin() {
    let setup = Setup::new(None, Some((4, DYNAMIC)));
    setup.write(COMMAND, ON);
    setup.device.assert_pin(true).unwrap();
    assert_eq!(setup.guest.pin_fired(), 1);
    let calls = setup.set_irqs();
    // Accesses to registers, to the table and to config space do not unmask it.
    for offset in [0, 4, TABLE, TABLE + 12, PBA] {
        let bar = BarIndex::new(0).unwrap();
        setup.function.bar_read(bar, offset, &mut [0; 4]);
        setup.function.bar_write(bar, offset, &[0; 4]);
    }
    setup.read(STATUS);
    setup.write(COMMAND, ON);
    setup.device.resample().unwrap();
    assert_eq!((setup.guest.pin_fired(), setup.set_irqs()), (0, calls));
    setup.guest.acknowledge_pin();
    setup.device.resample().unwrap();
    assert_eq!(
        (setup.guest.pin_fired(), setup.set_irqs()),
        (1, calls),
        "only the kernel unmasks it"
    );
}
