//! Tests of the four forms of MSI, with all numbers of vectors.

use super::*;

/// The offsets of the data, mask and pending registers in a capability of this form (PCI 6.8.1,
/// figure 6-9).
fn registers(control: u16) -> (u16, Option<u16>, Option<u16>) {
    let data = if control & 0x80 == 0 { 8 } else { 12 };
    let masks = control & 0x100 != 0;
    (data, masks.then_some(data + 4), masks.then_some(data + 8))
}

/// A guest has programmed MSI with 2 to the power of `power` vectors, and has enabled it.
fn started(control: u16, power: u16) -> Setup {
    let setup = Setup::new(Some(control), None);
    let (data, ..) = registers(control);
    let _ = setup.function.config_write(MSI + 4, &0xfee0_0000_u32.to_le_bytes());
    if control & 0x80 != 0 {
        let _ = setup.function.config_write(MSI + 8, &1_u32.to_le_bytes());
    }
    setup.write(MSI + data, 0x40);
    setup.write(MSI + 2, 1 | power << 4);
    setup
}

#[test]
fn every_form_delivers_as_many_vectors_as_the_guest_enables() {
    for form in [0x000, 0x080, 0x100, 0x180] {
        for (capable, enabled) in
            (0..6).flat_map(|capable| (0..8).map(move |enabled| (capable, enabled)))
        {
            let control = form | capable << 1;
            let setup = started(control, enabled);
            let vectors = 1 << enabled.min(capable);
            let case = format!("{control:#x}, {enabled} enabled");
            assert_eq!(
                (setup.device.irqs().active, setup.device.irqs().bound.len()),
                (Some(ON_MSI), vectors),
                "{case}"
            );
            assert_eq!(setup.set_irqs(), 1, "{case}");
            (0..32).for_each(|vector| setup.device.raise(vector).unwrap());
            let upper = u64::from(control & 0x80 != 0) << 32;
            let expected = (0..vectors as u32).map(|vector| {
                let message = MsiMessage { address: upper | 0xfee0_0000, data: 0x40 | vector };
                (message, 1)
            });
            assert_eq!(setup.guest.arrived(), expected.collect(), "{case}");
            setup.write(MSI + 2, 0);
            assert_eq!(setup.device.irqs().active, None, "{case}");
            assert!(setup.guest.delivered().is_empty(), "{case}");
        }
    }
}

#[test]
fn a_masked_vector_is_pending_and_fires_once_when_it_is_unmasked() {
    for control in [0x104, 0x184] {
        let setup = started(control, 2);
        let (_, mask, pending) = registers(control);
        let (mask, pending) = (MSI + mask.unwrap(), MSI + pending.unwrap());
        let _ = setup.function.config_write(mask, &[0b0110]);
        (0..3).for_each(|_| setup.device.raise(2).unwrap());
        setup.device.raise(0).unwrap();
        assert_eq!(setup.arrived(), times([(0x40, 1)]), "{control:#x}");
        assert_eq!(setup.read(pending), 0b0100, "{control:#x}");
        setup.write(pending, 0);
        assert_eq!(setup.read(pending), 0b0100, "{control:#x}: read-only");
        let before = setup.set_irqs();
        let _ = setup.function.config_write(mask, &[0b0010]);
        assert_eq!(setup.arrived(), times([(0x42, 1)]), "{control:#x}");
        assert_eq!((setup.read(pending), setup.set_irqs()), (0, before), "{control:#x}");
    }
}

#[test]
fn a_message_can_change_while_msi_is_enabled() {
    let setup = started(0x0084, 0);
    setup.device.raise(0).unwrap();
    setup.write(MSI + 12, 0x60);
    setup.device.raise(0).unwrap();
    assert_eq!(setup.arrived(), times([(0x40, 1), (0x60, 1)]));
    assert_eq!(setup.set_irqs(), 1);
}
