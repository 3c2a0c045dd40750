//! Tests of BARs in guest memory: their addresses, the number of slot calls, and failures.

use super::*;

const FIRST: u32 = 0xe000_0000;
const SECOND: u32 = 0xe100_0000;

/// A function that decodes BAR0 and BAR1, of 16 KiB each, at `FIRST` and `SECOND`.
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

#[test]
fn makes_no_slot_call_if_nothing_changes() {
    let setup = setup();
    assert_eq!(setup.guest.slots(), both());
    let before = setup.slot_calls();
    setup.write32(0x10, FIRST);
    setup.write16(COMMAND, 6);
    setup.write16(COMMAND, 2);
    setup.write16(COMMAND, 0x0403);
    setup.write16(PM_CONTROL, 0);
    setup.write32(0x30, 0);
    assert_eq!(setup.slot_calls(), before);
    assert_eq!(setup.guest.slots(), both());
}

#[test]
fn makes_slot_calls_only_for_the_bar_that_moves() {
    let setup = setup();
    let before = setup.slot_calls();
    assert!(setup.function.config_write(0x10, &0xe200_0000_u32.to_le_bytes()).slots_freed);
    assert_eq!(setup.slot_calls() - before, 2, "one removed, one placed");
}

#[test]
fn makes_no_device_read_if_the_function_stays_in_d0() {
    let setup = setup();
    let before = setup.faults.made(Call::Read);
    setup.write16(PM_CONTROL, 0x8000);
    assert_eq!(setup.faults.made(Call::Read), before);
    assert_eq!(setup.real(PM_CONTROL.into(), 2), [0, 0x80], "the write reaches the device");
}

#[test]
fn removes_a_bar_while_the_guest_sizes_it() {
    let setup = Setup::new(config_of([4, 0, 0, 0, 0, 0], &[]), &[0x4000]);
    let home = vec![range(0x38_0000_4000, 0x4000)];
    setup.write32(0x10, 0x4004);
    setup.write32(0x14, 0x38);
    setup.write16(COMMAND, 2);
    for register in [0x10, 0x14] {
        let value = setup.read32(register);
        assert_eq!(setup.guest.slots(), home);
        setup.write32(register, u32::MAX);
        assert_eq!(setup.guest.slots(), [], "register {register:#x}");
        setup.write32(register, u32::MAX);
        assert_eq!(setup.guest.slots(), [], "register {register:#x}, sized twice");
        setup.write32(register, value);
    }
    // 0x38_ffff_c000 is a valid address although all address bits of its lower half are ones.
    setup.write32(0x10, 0xffff_c004);
    assert_eq!(setup.guest.slots(), [range(0x38_ffff_c000, 0x4000)]);
    setup.write32(0x14, 0x0010_0000);
    assert_eq!(setup.guest.slots(), [], "above 52 bits");
}

#[test]
fn a_failed_slot_call_leaves_no_slot_at_a_wrong_address() {
    for call in [Call::PlaceSlot, Call::RemoveSlot] {
        for nth in 0..4 {
            let setup = setup();
            setup.faults.fail(call, nth, libc::ENOMEM);
            setup.write16(COMMAND, 0);
            assert_eq!(setup.guest.slots(), [], "{call:?} {nth}: off");
            setup.write32(0x10, FIRST + 0x10_0000);
            setup.write16(COMMAND, 6);
            let wanted =
                [range(u64::from(FIRST) + 0x10_0000, 0x4000), range(SECOND.into(), 0x4000)];
            assert!(setup.guest.slots().iter().all(|slot| wanted.contains(slot)), "{call:?} {nth}");
            setup.faults.clear();
            setup.write16(COMMAND, 6);
            assert_eq!(setup.guest.slots(), wanted, "{call:?} {nth}: retried");
        }
    }
}

#[test]
fn retries_a_failed_removal_at_the_next_write() {
    let setup = setup();
    (0..4).for_each(|nth| setup.faults.fail(Call::RemoveSlot, nth, libc::ENOMEM));
    setup.write16(COMMAND, 0);
    assert_eq!(setup.guest.slots(), both(), "the host refuses");
    setup.write32(0x14, SECOND + 0x10_0000);
    assert_eq!(setup.guest.slots(), []);
}

#[test]
fn traps_bars_if_the_device_did_not_start_decoding() {
    let setup = setup();
    setup.write16(COMMAND, 0);
    setup.faults.fail(Call::Write, 0, libc::EIO);
    setup.write16(COMMAND, 2);
    assert_eq!(setup.guest.slots(), []);
    setup.write16(COMMAND, 6);
    assert_eq!(setup.guest.slots(), both());
}

#[test]
fn places_overlapping_bars_after_they_part() {
    let setup = setup();
    setup.write32(0x14, FIRST);
    assert_eq!(setup.guest.slots(), [range(FIRST.into(), 0x4000)]);
    let first = setup.function.decode(vfio_passthrough::Space::Memory, FIRST.into());
    assert_eq!(first, Some((BarIndex::new(0).unwrap(), 0)), "the first BAR decodes the address");
    setup.write32(0x10, SECOND);
    assert_eq!(setup.guest.slots(), both(), "BAR1 is placed where BAR0 was");
}

#[test]
fn places_a_refused_bar_after_another_function_moves_away() {
    let (one, faults) = (setup(), Arc::new(Faults::default()));
    let device = PciDevice::new(faults, config_of([0; 6], &[]), &[0x4000], vec![]).unwrap();
    let address = "02:00.0".parse().unwrap();
    let policy = ResetPolicy::Required;
    let two =
        PassthroughFunction::new(address, Arc::new(device), &one.guest.services(), policy).unwrap();
    let _ = two.config_write(0x10, &FIRST.to_le_bytes());
    let _ = two.config_write(COMMAND, &[2, 0]);
    assert_eq!(one.guest.slots(), both(), "refused");
    assert!(one.function.config_write(0x10, &0xe200_0000_u32.to_le_bytes()).slots_freed, "moved");
    let _ = two.retry_placement();
    assert_eq!(one.guest.slots(), [both(), vec![range(0xe200_0000, 0x4000)]].concat());
    assert!(
        !one.function.config_write(0x10, &0xe200_0000_u32.to_le_bytes()).slots_freed,
        "unchanged"
    );
}

#[test]
fn places_bars_where_they_fit_and_reports_their_addresses() {
    let setup = Setup::new(config_of([4, 0, 0, 1, 0, 0], &[]), &[0x4000, 0, 0x1000, 0x20]);
    let bar = |number| BarIndex::new(number).unwrap();
    let place = |number, address| setup.function.place_bar(bar(number), address);
    let _ = place(0, 0x38_0000_4000).unwrap();
    let _ = place(2, 0xe000_1000).unwrap();
    let placed = place(3, 0xc020).unwrap();
    assert_eq!(placed.bars, [None; 7], "nothing is decoded yet");
    let addresses = || [0, 1, 2, 3].map(|number| setup.function.bar_address(bar(number)));
    let registers = [Some(0x38_0000_4000), None, Some(0xe000_1000), Some(0xc020)];
    assert_eq!(addresses(), registers);
    setup.write32(0x18, u32::MAX);
    assert_eq!(addresses(), [registers[0], None, None, registers[3]], "BAR 2 is being sized");
    setup.write32(0x18, 0xe000_1000);
    let decoded = setup.function.config_write(COMMAND, &3_u16.to_le_bytes());
    let found = [Some(0x38_0000_4000), None, Some(0xe000_1000), Some(0xc020), None, None, None];
    assert_eq!(decoded.bars, found);
    for (number, address) in
        [(1, 0), (0, 0x2000), (0, 1 << 52), (2, 1 << 32), (2, 0xe000_0800), (3, 0x1_0000)]
    {
        let error = place(number, address).unwrap_err().to_string();
        let expected = format!("0000:01:00.0: cannot place BAR{number} at {address:#x}: ");
        assert!(error.starts_with(&expected), "{error}");
    }
    assert_eq!(setup.function.retry_placement().bars, found, "nothing was written");
}
