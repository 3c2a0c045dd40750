//! Tests of a function's config space: the accesses that reach the device, and a guest's view of
//! odd devices.

use super::*;

/// MSI with masks at 0x90, MSI-X at 0xb0.
fn with_messages() -> Vec<u8> {
    let msi = [0x05, 0xb0, 0x8a, 0x01];
    let msix = [0x11, 0, 3, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0];
    config_of([4, 0, 8, 1, 0, 0], &[(0x51, &[0x90]), (0x90, &msi), (0xb0, &msix)])
}

#[test]
fn a_dword_read_makes_at_most_one_device_read() {
    let setup = Setup::new(with_messages(), &[0x4000, 0, 0x1000, 0x20]);
    for offset in (0..0x1000).step_by(4) {
        let before = setup.faults.made(Call::Read);
        setup.read32(offset);
        // The library emulates the header except for the status, MSI, MSI-X, the flags of PCI
        // Express, and the head of the empty extended list.
        let ours = matches!(offset, 0x00 | 0x08..0x40 | 0x50 | 0x90..0xa8 | 0xb0..0xbc | 0x100);
        let links = matches!(offset, 0x5c..0x74 | 0x7c..0x8c);
        let expected = u64::from(!ours && !links);
        assert_eq!(setup.faults.made(Call::Read) - before, expected, "{offset:#x}");
    }
}

#[test]
fn no_write_reaches_the_hosts_registers() {
    let config = with_messages();
    for value in [u32::MAX, 0x5555_5555, 0] {
        let setup = Setup::new(config.clone(), &[0x4000, 0, 0x1000, 0x20]);
        // A function level reset would restore all registers.
        let offsets = (0..0x1000).step_by(4).filter(|offset| *offset != EXPRESS_CONTROL);
        offsets.for_each(|offset| setup.write32(offset, value));
        for range in [0x08..0x40, 0x90..0xa8, 0xb0..0xbc] {
            let found = setup.real(range.start as u64, range.len());
            assert_eq!(found, config[range.clone()], "{value:#x} at {range:#x?}");
        }
    }
}

#[test]
fn a_virtual_function_decodes_by_the_guests_memory_bit_and_has_no_pin() {
    // Its own memory bit is hardwired to zero (PCIe 9.3.4.1.3), and VFIO reports its BARs.
    let setup = Setup::of(config_of([4, 0, 0, 0, 0, 0], &[]), &[0x4000], |device| {
        device.with_zeros(COMMAND.into(), 0b010)
    });
    setup.write32(0x10, 0xe000_0000);
    setup.write16(COMMAND, 6);
    assert_eq!(setup.real(COMMAND.into(), 1), [4], "no memory bit");
    assert_eq!(setup.read16(COMMAND), 6, "the guest's bits");
    assert_eq!(setup.guest.slots(), [range(0xe000_0000, 0x4000)]);
    assert_eq!((setup.read16(0x3c), setup.guest.pins()), (0, 0));
}

#[test]
fn hides_other_functions_and_the_hosts_interrupt_line() {
    let setup = Setup::new(config_of([0; 6], &[(0x0e, &[0x80]), (0x3c, &[0x0b, 1])]), &[]);
    assert_eq!(setup.read16(0x0e), 0, "one function");
    // VFIO has no INTx for the device, so the guest sees no pin.
    assert_eq!(setup.read16(0x3c), 0x000b);
    setup.write16(0x3c, 0xffff);
    assert_eq!(setup.read16(0x3c), 0x00ff);
    assert_eq!(setup.real(0x3c, 2), [0x0b, 1]);
}

#[test]
fn cuts_a_bad_capability_list_and_logs_one_line() {
    let bad: [(&str, Extra<'_>); 9] = [
        ("loops", &[(0x51, &[0x40])]),
        ("is its own next", &[(0x51, &[0x50])]),
        ("starts in the header", &[(0x34, &[0x10])]),
        ("points into the header", &[(0x51, &[0x3c])]),
        ("ends in nothing", &[(0x51, &[0xf0]), (0xf0, &[0xff; 4])]),
        ("runs past the end", &[(0x51, &[0xfc]), (0xfc, &[0x05, 0, 0, 0])]),
        ("extended: loops", &[(0x100, &[1, 0, 2, 0x10])]),
        ("extended: points below 0x100", &[(0x100, &[1, 0, 2, 0x08])]),
        ("extended: ends in nothing", &[(0x100, &[1, 0, 2, 0x20]), (0x200, &[0xff; 4])]),
    ];
    for (name, extra) in bad {
        let (setup, lines) = logged(|| Setup::new(config_of([0; 6], extra), &[]));
        assert_eq!(lines, 1, "{name}");
        let mut next = setup.read16(0x34);
        let mut seen = Vec::new();
        while next != 0 {
            seen.push(next);
            next = setup.read16(next) >> 8;
            assert!(seen.len() <= 2, "{name}: {seen:#x?}");
        }
        assert!(setup.read32(0x100) >> 20 == 0, "{name}");
    }
    let (_, lines) = logged(|| Setup::new(config_of([0; 6], &[]), &[]));
    assert_eq!(lines, 0, "a good list");
}

#[test]
fn conventional_pci_has_256_bytes_of_config_space() {
    let mut config = with_messages();
    config.truncate(0x100);
    let setup = Setup::new(config, &[0x4000, 0, 0x1000, 0x20]);
    let before = (setup.faults.made(Call::Read), setup.faults.made(Call::Write));
    for offset in (0x100..0x1000).step_by(4) {
        assert_eq!(setup.read32(offset), u32::MAX, "{offset:#x}");
        setup.write32(offset, 0);
    }
    assert_eq!((setup.faults.made(Call::Read), setup.faults.made(Call::Write)), before);
    setup.write16(0xfc, 0x1234);
    assert_eq!(
        (setup.read16(0xfc), setup.real(0xfc, 2)),
        (0x1234, vec![0x34, 0x12]),
        "the device's register"
    );
    setup.write32(0x10, u32::MAX);
    assert_eq!((setup.read32(0x10), setup.read16(0x34)), (0xffff_c004, 0x40));
}
