//! Tests of MSI-X: masks, pending bits, growth, and the number of calls.

use super::*;

/// A way to mask vector 3.
type Mask = fn(&Setup, bool);

/// A write to the table: an offset and bytes.
type Access<'a> = (u64, &'a [u8]);

const MASKS: [(&str, Mask); 2] = [
    ("by the vector", |setup, masked| setup.mask(3, masked)),
    ("by the function", |setup, masked| {
        setup.write(MSIX_CONTROL, if masked { ENABLE | FUNCTION_MASK } else { ENABLE });
    }),
];

fn started(flags: IrqFlags) -> Setup {
    let setup = Setup::msix(8, flags);
    setup.program(3);
    setup
}

fn fires_once_at_unmask(setup: &Setup, mask: Mask, case: &str) {
    (0..3).for_each(|_| setup.device.raise(3).unwrap());
    assert_eq!(setup.arrived(), times([]), "{case}: masked");
    assert_eq!(setup.pending(), 1 << 3, "{case}");
    assert_eq!(setup.pending(), 1 << 3, "{case}: a read does not clear the bit");
    mask(setup, false);
    assert_eq!(setup.arrived(), times([(3, 1)]), "{case}");
    assert_eq!(setup.pending(), 0, "{case}");
    setup.device.raise(3).unwrap();
    assert_eq!(setup.arrived(), times([(3, 1)]), "{case}: unmasked");
}

#[test]
fn a_vector_masked_before_its_first_use_is_pending_and_fires_once() {
    for flags in [DYNAMIC, NORESIZE] {
        for (name, mask) in MASKS {
            let setup = started(flags);
            setup.write(MSIX_CONTROL, ENABLE | FUNCTION_MASK);
            setup.mask(3, name == "by the vector");
            setup.write(
                MSIX_CONTROL,
                if name == "by the vector" { ENABLE } else { ENABLE | FUNCTION_MASK },
            );
            fires_once_at_unmask(&setup, mask, &format!("{name}, {flags:?}"));
        }
    }
}

#[test]
fn a_vector_masked_after_its_first_use_is_pending_and_fires_once() {
    for flags in [DYNAMIC, NORESIZE] {
        for (name, mask) in MASKS {
            let setup = started(flags);
            setup.write(MSIX_CONTROL, ENABLE);
            setup.mask(3, false);
            setup.device.raise(3).unwrap();
            assert_eq!(setup.arrived(), times([(3, 1)]));
            mask(&setup, true);
            fires_once_at_unmask(&setup, mask, &format!("{name}, {flags:?}"));
        }
    }
}

#[test]
fn table_writes_are_coalesced_only_while_nothing_can_be_delivered() {
    const MEMORY: u16 = 2;
    let setup = started(DYNAMIC);
    setup.write(0x10, 0);
    setup.write(0x12, 0xe000);
    let effects = |offset, value: u16| setup.function.config_write(offset, &value.to_le_bytes());
    let range = |command, control| {
        let before = effects(COMMAND, command);
        let after = effects(MSIX_CONTROL, control);
        assert!(after.sequence > before.sequence);
        after.coalesced_writes.map(|range| (range.start(), range.size()))
    };
    let table = Some((0xe000_0000 + TABLE, 8 * 16));
    assert_eq!(range(0, 0), None, "it decodes nothing");
    assert_eq!(range(MEMORY, 0), table);
    assert_eq!(range(MEMORY, ENABLE | FUNCTION_MASK), table);
    assert_eq!(range(MEMORY, FUNCTION_MASK), table);
    assert_eq!(range(MEMORY, ENABLE), None, "a write can unmask an entry");
    let (reset, _) = setup.function.reset();
    assert_eq!(reset.coalesced_writes, None, "it decodes nothing");
    assert_eq!(range(MEMORY, 0), None, "its BAR has no address");
    setup.write(0x12, 0xe000);
    assert_eq!(range(MEMORY, 0), table);
    let (detached, result) = setup.function.detach();
    result.unwrap();
    assert_eq!(detached.coalesced_writes, None);
    assert_eq!(effects(COMMAND, MEMORY).coalesced_writes, None);
}

#[test]
fn disabling_msix_clears_pending_vectors() {
    for flags in [DYNAMIC, NORESIZE] {
        let setup = started(flags);
        setup.write(MSIX_CONTROL, ENABLE);
        setup.device.raise(3).unwrap();
        assert_eq!(setup.pending(), 1 << 3);
        setup.write(MSIX_CONTROL, 0);
        assert_eq!(setup.pending(), 0);
        setup.mask(3, false);
        setup.write(MSIX_CONTROL, ENABLE);
        assert_eq!(setup.arrived(), times([]), "{flags:?}");
    }
}

#[test]
fn reads_pending_bits_from_the_device_only_for_unbound_vectors() {
    let setup = Setup::msix(128, DYNAMIC);
    (0..64).for_each(|vector| {
        setup.program(vector);
        setup.mask(vector, false);
    });
    let read = |offset: u64, length: usize| {
        let before = setup.faults.made(Call::Read);
        let mut data = vec![0; length];
        setup.function.bar_read(BarIndex::new(0).unwrap(), PBA + offset, &mut data);
        (setup.faults.made(Call::Read) - before, data)
    };
    assert_eq!(read(0, 8), (0, vec![0; 8]), "off");
    setup.write(MSIX_CONTROL, ENABLE);
    setup.device.raise(64 + 9).unwrap();
    assert_eq!(read(0, 8), (0, vec![0; 8]), "all bound");
    assert_eq!(read(8, 8), (1, vec![0, 2, 0, 0, 0, 0, 0, 0]));
    assert_eq!(read(8, 4), (1, vec![0, 2, 0, 0]));
    assert_eq!(read(9, 1), (1, vec![2]));
}

#[test]
fn no_interrupt_is_lost_while_vectors_grow() {
    for flags in [DYNAMIC, NORESIZE] {
        let setup = Setup::msix(64, flags);
        setup.write(MSIX_CONTROL, ENABLE);
        for last in 0..64 {
            setup.program(last);
            setup.device.raise(last).unwrap();
            setup.mask(last, false);
            (0..=last).for_each(|vector| setup.device.raise(vector).unwrap());
        }
        // Each vector fires once before it is unmasked, then once for each vector from itself on.
        let expected = (0..64).map(|vector| (vector, 1 + 64 - u64::from(vector)));
        assert_eq!(setup.arrived(), expected.collect(), "{flags:?}");
    }
}

#[test]
fn a_large_table_costs_only_its_used_vectors() {
    let setup = Setup::msix(2048, DYNAMIC);
    setup.write(MSIX_CONTROL, ENABLE);
    for vector in [0, 700, 2047] {
        setup.program(vector);
        setup.mask(vector, false);
    }
    let irqs = setup.device.irqs();
    assert_eq!(
        (setup.guest.triggers(), setup.guest.delivered().len(), irqs.bound.len()),
        (3, 3, 3)
    );
    assert_eq!(irqs.allocated.into_iter().collect::<Vec<_>>(), [0, 700, 2047]);
}

#[test]
fn binds_a_table_that_cannot_grow_in_one_call() {
    let setup = Setup::msix(2048, NORESIZE);
    setup.write(MSIX_CONTROL, ENABLE);
    assert_eq!((setup.set_irqs(), setup.device.irqs().bound.len()), (1, 2048));
    setup.program(2047);
    setup.mask(2047, false);
    assert_eq!((setup.set_irqs(), setup.guest.delivered().len()), (1, 1));
}

#[test]
fn clearing_the_function_mask_needs_one_call_and_one_batch() {
    let cases: [(&[u16], u64); 3] = [
        (&[0, 1, 2, 3], 1),
        (&[1, 3, 9], 1),
        // Vector 5 is already bound: one call for all would unbind it.
        (&[1, 3, 9, 5, 7], 2),
    ];
    for (vectors, calls) in cases {
        let setup = Setup::msix(16, DYNAMIC);
        (0..16).for_each(|vector| setup.program(vector));
        setup.write(MSIX_CONTROL, ENABLE);
        if vectors.contains(&5) {
            setup.mask(5, false);
        }
        setup.write(MSIX_CONTROL, ENABLE | FUNCTION_MASK);
        vectors.iter().for_each(|vector| setup.mask(*vector, false));
        let before = (setup.set_irqs(), setup.faults.made(Call::Route));
        setup.write(MSIX_CONTROL, ENABLE);
        assert_eq!(
            (setup.set_irqs(), setup.faults.made(Call::Route)),
            (before.0 + calls, before.1 + 1),
            "{vectors:?}"
        );
        assert_eq!(setup.device.irqs().bound.len(), vectors.len(), "{vectors:?}");
        vectors.iter().for_each(|vector| setup.device.raise(*vector).unwrap());
        assert_eq!(setup.arrived().len(), vectors.len(), "{vectors:?}");
    }
}

#[test]
fn an_unchanged_write_costs_nothing() {
    let setup = started(DYNAMIC);
    setup.write(MSIX_CONTROL, ENABLE);
    setup.mask(3, false);
    let before = (setup.set_irqs(), setup.faults.made(Call::Route));
    setup.program(3);
    setup.mask(3, false);
    setup.write(MSIX_CONTROL, ENABLE);
    assert_eq!((setup.set_irqs(), setup.faults.made(Call::Route)), before);
}

#[test]
fn accepts_writes_of_message_control_in_every_width() {
    // Offset, bytes, and the register after the write. Both bits were clear before.
    let cases: [(u16, &[u8], u16); 5] = [
        (0x43, &[0x80], 0x8007),
        (0x42, &[0xff], 0x0007),
        (0x42, &[0x00, 0xc0], 0xc007),
        (0x40, &[0xff, 0xff, 0xff, 0xff], 0xc007),
        (0x40, &[0, 0, 0, 0x80], 0x8007),
    ];
    for (offset, data, expected) in cases {
        let setup = started(DYNAMIC);
        let _ = setup.function.config_write(offset, data);
        assert_eq!(setup.read(MSIX_CONTROL), expected, "{data:?} at {offset:#x}");
        let on = setup.device.irqs().active == Some(ON_MSIX);
        assert_eq!(on, expected & ENABLE != 0, "{data:?} at {offset:#x}");
        assert_eq!(setup.read(0x40), 0x8011, "identifier and link are read-only");
    }
}

#[test]
fn accepts_table_writes_only_as_dwords_and_qwords() {
    let entry = |state: &[u8; 16]| u128::from_le_bytes(*state);
    let unmasked = 0xfee0_0000_u128 | 0x41 << 64;
    let reset = 1_u128 << 96;
    let cases: [(&[Access<'_>], u128); 6] = [
        (&[(0, &[0, 0, 0xe0, 0xfe]), (8, &[0x41, 0, 0, 0]), (12, &[0; 4])], unmasked),
        (&[(0, &[0, 0, 0xe0, 0xfe, 0, 0, 0, 0]), (8, &[0x41, 0, 0, 0, 0, 0, 0, 0])], unmasked),
        (&[(4, &[1; 8])], reset),
        (&[(12, &[0; 8])], reset),
        (&[(12, &[0; 2])], reset),
        (&[(12, &[0])], reset),
    ];
    for (writes, expected) in cases {
        let setup = Setup::msix(2, DYNAMIC);
        setup.write(MSIX_CONTROL, ENABLE);
        writes.iter().for_each(|(offset, data)| setup.table_write(*offset, data));
        let mut data = [0; 16];
        let (low, high) = data.split_at_mut(8);
        let bar = BarIndex::new(0).unwrap();
        setup.function.bar_read(bar, TABLE, low);
        setup.function.bar_read(bar, TABLE + 8, high);
        assert_eq!(entry(&data), expected, "{writes:?}");
        assert_eq!(setup.guest.delivered().len(), usize::from(expected == unmasked), "{writes:?}");
    }
}

#[test]
fn masks_a_vector_even_if_another_cannot_be_delivered() {
    let setup = Setup::msix(4, DYNAMIC);
    setup.write(MSIX_CONTROL, ENABLE);
    setup.write(COMMAND, 2);
    setup.program(0);
    setup.mask(0, false);
    setup.faults.fail(Call::Route, 0, libc::ENOSPC);
    setup.program(1);
    setup.mask(1, false);
    // The batch has the mask and the failed message: the mask takes effect.
    setup.faults.fail(Call::Route, 1, libc::ENOSPC);
    setup.mask(0, true);
    setup.device.raise(0).unwrap();
    assert_eq!((setup.arrived(), setup.pending()), (times([]), 1));
    // No call fails from here on: the host matches the guest's table.
    setup.mask(0, false);
    setup.device.raise(1).unwrap();
    assert_eq!(setup.arrived(), times([(0, 1), (1, 1)]));
}

#[test]
fn delivers_the_old_message_again_after_the_new_one_failed() {
    let setup = Setup::msix(4, DYNAMIC);
    setup.write(MSIX_CONTROL, ENABLE);
    setup.program(2);
    setup.mask(2, false);
    setup.faults.fail(Call::Route, 0, libc::ENOMEM);
    setup.table_write(2 * 16 + 8, &9_u32.to_le_bytes());
    setup.device.raise(2).unwrap();
    assert_eq!(setup.arrived(), times([]));
    setup.table_write(2 * 16 + 8, &2_u32.to_le_bytes());
    assert_eq!(setup.arrived(), times([(2, 1)]));
}

#[test]
fn binds_no_vector_until_a_failed_enable_is_repeated() {
    let setup = Setup::msix(16, DYNAMIC);
    [0, 9].into_iter().for_each(|vector| {
        setup.program(vector);
        setup.mask(vector, false);
    });
    setup.faults.fail(Call::SetIrqs, 0, libc::EBUSY);
    setup.write(MSIX_CONTROL, ENABLE);
    assert_eq!(
        setup.device.irqs().allocated.len(),
        0,
        "a binding would allocate all vectors up to the last one"
    );
    setup.write(MSIX_CONTROL, ENABLE);
    let irqs = setup.device.irqs();
    assert_eq!(irqs.allocated.into_iter().collect::<Vec<_>>(), [0, 9]);
}
