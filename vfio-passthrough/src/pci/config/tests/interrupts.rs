//! Tests the registers of MSI and MSI-X.

use super::*;

#[test]
fn msix_control_is_emulated() {
    let mut view = view();
    assert_eq!(
        read(&view, &device(), 0x60, 4),
        0x0040_8011,
        "disabled, though it is enabled in the device"
    );
    let written = view.write(0x60, &[0xff; 4]);
    assert_eq!(written, Written { forward: vec![], touched: Touched::MSIX });
    assert_eq!(view.msix_control(), Some(0xc040));
    assert_eq!(
        view.write(0x62, &[0]).touched,
        Touched::empty(),
        "the low byte is the table's size"
    );
    assert_eq!(view.write(0x63, &[0]).touched, Touched::MSIX);
}

#[test]
fn msi_is_emulated() {
    let mut view = view();
    assert_eq!(
        read(&view, &device(), 0x50, 4),
        0x0084_6005,
        "disabled, though it is enabled in the device"
    );
    view.write(0x52, &[0xff, 0xff]);
    assert_eq!(read(&view, &device(), 0x52, 2), 0x00f5);
    let written = view.write(0x54, &[0x03, 0x10, 0xe0, 0xfe]);
    assert_eq!(written, Written { forward: vec![], touched: Touched::MSI });
    view.write(0x5c, &[0x40, 0x40]);
    let wanted = view.msi_programmed();
    assert_eq!((wanted.vectors, wanted.unmasked.len()), (4, 4), "no more than the function has");
    assert_eq!(wanted.unmasked[&3].data, 0x4043);
    assert_eq!(wanted.unmasked[&3].address, 0xfee0_1000);
}

#[test]
fn reports_an_enable_of_what_is_enabled_in_the_same_way() {
    // Each write, and whether it is such an enable.
    let msix = [(0x8000, false), (0x8000, true), (0xbfff, true), (0xc000, false), (0xc000, true)];
    let msi = [(0x01, false), (0x01, true), (0x11, false), (0x11, true), (0x10, false)];
    for (offset, writes) in [(0x62, msix), (0x52, msi)] {
        let mut view = view();
        for (value, expected) in writes {
            let touched = view.write(offset, &u16::to_le_bytes(value)).touched;
            assert_eq!(touched.contains(Touched::ENABLE_AGAIN), expected, "{offset:#x} {value:#x}");
        }
        view.write(offset, &[0, 0]);
        let touched = [view.write(offset, &[0, 0]), view.write(offset + 2, &[0xff])];
        assert!(!touched.iter().any(|it| it.touched.contains(Touched::ENABLE_AGAIN)));
    }
}

#[test]
fn msi_pending_bits_are_at_the_offset_of_the_layout() {
    for (form, pending) in [(0x0105, 0x60), (0x0185, 0x64)] {
        let mut bytes = device();
        bytes[0x50..0x54].copy_from_slice(&[cap::MSI, 0x80, form as u8, (form >> 8) as u8]);
        let mut view = view_of(&bytes);
        let reads = |offset, length| view.reads_msi_pending(offset, length);
        let known: Vec<u16> = (0x40..0x80).filter(|offset| reads(*offset, 1)).collect();
        assert_eq!(known, (pending..pending + 4).collect::<Vec<u16>>());
        assert!(reads(pending - 2, 4) && reads(pending - 1, 2) && reads(pending + 3, 4));
        assert!(!reads(pending - 4, 4) && !reads(pending + 4, 4));
        view.set_msi_pending(0x8421_7f3c);
        assert_eq!(read(&view, &bytes, pending, 4), 0x8421_7f3c);
        assert_eq!(read(&view, &bytes, pending - 4, 4), 0, "the mask bits");
    }
    assert!(
        (0..0x100).all(|offset| !view().reads_msi_pending(offset, 4)),
        "a layout without pending bits"
    );
}
