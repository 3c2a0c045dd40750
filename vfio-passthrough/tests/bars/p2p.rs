//! Tests of BARs in the DMA space of other devices: a BAR is mapped at its guest physical address
//! while the device decodes it.

use super::*;

const FIRST: u32 = 0xe000_0000;
const SECOND: u32 = 0xe100_0000;

fn setup() -> Setup {
    let setup = Setup::new(config_of([0; 6], &[]), &[0x4000, 0x4000]);
    setup.write32(0x10, FIRST);
    setup.write32(0x14, SECOND);
    setup.write16(COMMAND, 6);
    setup
}

fn both() -> Vec<ByteRange> {
    vec![range(FIRST.into(), 0x4000), range(SECOND.into(), 0x4000)]
}

/// The calls of `work`, in order, without reads and interrupts.
fn trail(setup: &Setup, work: impl FnOnce(&Setup)) -> Vec<Call> {
    setup.faults.trail();
    work(setup);
    let matters = |call: &Call| !matches!(call, Call::Read | Call::SetIrqs);
    setup.faults.trail().into_iter().filter(matters).collect()
}

const AWAY: [Call; 2] = [Call::UnmapDma, Call::RemoveSlot];
const THERE: [Call; 2] = [Call::PlaceSlot, Call::MapDma];

#[test]
fn unmaps_a_bar_before_decoding_ends_and_maps_it_after_decoding_starts() {
    let setup = setup();
    assert_eq!(setup.iommu.mappings(), both());
    let off = trail(&setup, |setup| setup.write16(COMMAND, 0));
    assert_eq!(off, [&AWAY[..], &AWAY, &[Call::Write]].concat());
    assert_eq!(setup.iommu.mappings(), []);
    let on = trail(&setup, |setup| setup.write16(COMMAND, 6));
    assert_eq!(on, [&[Call::Write][..], &THERE, &THERE].concat());
    let moved = trail(&setup, |setup| setup.write32(0x14, 0xe200_0000));
    assert_eq!(moved, [AWAY, THERE].concat());
    assert_eq!(setup.iommu.mappings(), [range(FIRST.into(), 0x4000), range(0xe200_0000, 0x4000)]);
    let asleep = trail(&setup, |setup| setup.write16(PM_CONTROL, 3));
    assert_eq!(asleep, [&AWAY[..], &AWAY, &[Call::Write]].concat());
    let awake = trail(&setup, |setup| setup.write16(PM_CONTROL, 0));
    assert_eq!(awake, [&[Call::Write][..], &THERE, &THERE].concat());
    let reset = trail(&setup, |setup| setup.function.reset().1.unwrap());
    assert_eq!(reset, [&AWAY[..], &AWAY, &[Call::Write, Call::Reset]].concat());
    assert_eq!(setup.iommu.mappings(), []);
    let traps = setup.function.traps();
    assert_eq!((traps.p2p_maps.value(), traps.p2p_unmaps.value()), (7, 7));
}

#[test]
fn unmaps_all_bars_when_the_function_ends() {
    for shut_down in [true, false] {
        let Setup { function, iommu, guest, .. } = setup();
        if shut_down {
            function.shutdown().unwrap();
        }
        drop(function);
        assert_eq!((iommu.mappings(), guest.slots()), (vec![], vec![]));
    }
}

#[test]
fn logs_one_warning_for_a_refused_mapping_and_keeps_the_slot() {
    for errno in [libc::EINVAL, libc::EFAULT, libc::ENOSPC, libc::EEXIST] {
        let setup = Setup::new(config_of([0; 6], &[]), &[0x4000, 0x4000]);
        setup.write32(0x10, FIRST);
        setup.write32(0x14, SECOND);
        (0..4).for_each(|nth| setup.faults.fail(Call::MapDma, nth, errno));
        let (_, lines) = logged(|| {
            for command in [6, 0, 6] {
                setup.write16(COMMAND, command);
            }
        });
        assert_eq!((setup.guest.slots(), setup.iommu.mappings()), (both(), vec![]));
        assert_eq!(lines, 1);
        setup.write16(COMMAND, 0);
        setup.write16(COMMAND, 6);
        assert_eq!(setup.iommu.mappings(), both(), "mapped after the next placement");
    }
}

#[test]
fn retries_a_failed_unmap() {
    let setup = setup();
    setup.faults.fail(Call::UnmapDma, 0, libc::EIO);
    setup.write32(0x10, 0xe200_0000);
    let moved = vec![range(SECOND.into(), 0x4000), range(0xe200_0000, 0x4000)];
    assert_eq!((setup.guest.slots(), setup.iommu.mappings()), (moved.clone(), moved));
}

#[test]
fn leaks_and_reports_a_mapping_that_cannot_be_unmapped() {
    let Setup { function, faults, device, iommu, guest } = setup();
    (0..9).for_each(|nth| faults.fail(Call::UnmapDma, nth, libc::EIO));
    let error = function.shutdown().unwrap_err().to_string();
    let begin = "0000:01:00.0: BAR0, for the DMA of other devices: \
                 cannot unmap 0xe0000000-0xe0003fff from DMA: ";
    assert!(error.starts_with(begin), "{error}");
    drop(function);
    assert_eq!((iommu.mappings(), guest.slots()), (both(), vec![]));
    assert!(Arc::strong_count(&device) > 1, "the leaked mapping holds the device");
}

/// The end of the list of capabilities at power management, without PCI Express.
const NO_EXPRESS: Extra<'_> = &[(0x41, &[0])];

#[test]
fn a_function_without_pci_express_is_conventional() {
    assert!(!setup().function.is_conventional());
    let old = Setup::of(config_of([0; 6], NO_EXPRESS), &[0x4000], |device| device);
    assert!(old.function.is_conventional());
}

#[test]
fn a_space_without_warnings_logs_none_and_leaves_the_warning_to_the_others() {
    let setup = Setup::new(config_of([0; 6], NO_EXPRESS), &[0x4000, 0x4000]);
    let space = DmaSpace::new(setup.iommu.clone());
    let (_, lines) = logged(|| {
        setup.function.set_peers(None).unwrap();
        setup.function.set_peers(Some(space.without_warnings())).unwrap();
        setup.write32(0x10, FIRST);
        setup.faults.fail(Call::MapDma, 0, libc::EFAULT);
        setup.write16(COMMAND, 6);
    });
    assert_eq!((setup.guest.slots().len(), setup.iommu.mappings(), lines), (1, vec![], 0));
    let (_, lines) = logged(|| {
        setup.function.set_peers(Some(space)).unwrap();
        setup.faults.fail(Call::MapDma, 0, libc::EFAULT);
        setup.write32(0x14, SECOND);
    });
    assert_eq!((setup.guest.slots(), setup.iommu.mappings(), lines), (both(), vec![], 1));
}

/// A function with a BAR of 256 bytes and one of 16 KiB.
fn with_small_bar(extra: Extra<'_>) -> Setup {
    let setup = Setup::new(config_of([0; 6], extra), &[0x100, 0x4000]);
    setup.write32(0x10, FIRST);
    setup.write32(0x14, SECOND);
    setup.write16(COMMAND, 6);
    setup
}

#[test]
fn maps_the_page_of_a_small_bar_of_a_conventional_function_without_a_slot() {
    let setup = with_small_bar(NO_EXPRESS);
    let (page, other) = (range(FIRST.into(), 0x1000), range(SECOND.into(), 0x4000));
    assert_eq!((setup.iommu.mappings(), setup.guest.slots()), (vec![page, other], vec![other]));
    let off = trail(&setup, |setup| setup.write16(COMMAND, 0));
    assert_eq!(off, [&[Call::UnmapDma][..], &AWAY, &[Call::Write]].concat());
    setup.write16(COMMAND, 6);
    let moved = trail(&setup, |setup| setup.write32(0x10, 0xe200_0000));
    assert_eq!(moved, [Call::UnmapDma, Call::MapDma]);
    assert_eq!(setup.iommu.mappings(), [other, range(0xe200_0000, 0x1000)]);
    let Setup { function, iommu, .. } = setup;
    function.shutdown().unwrap();
    assert_eq!(iommu.mappings(), []);
}

#[test]
fn maps_no_small_bar_that_is_not_at_the_start_of_its_page() {
    let setup = with_small_bar(NO_EXPRESS);
    setup.write32(0x10, FIRST + 0x100);
    assert_eq!(setup.iommu.mappings(), [range(SECOND.into(), 0x4000)]);
    setup.write32(0x10, FIRST);
    assert_eq!(setup.iommu.mappings().len(), 2);
}

#[test]
fn maps_no_small_bar_of_a_pci_express_function() {
    assert_eq!(with_small_bar(&[]).iommu.mappings(), [range(SECOND.into(), 0x4000)]);
}
