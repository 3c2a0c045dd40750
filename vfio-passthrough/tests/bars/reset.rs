//! Tests of resets: their kind, their time, and their failures.

use super::*;
use vfio_passthrough::backend::BusMember;
use vfio_passthrough::function::Reset;

fn member(address: &str, ours: bool, driver: Option<&str>) -> BusMember {
    BusMember { address: address.parse().unwrap(), ours, driver: driver.map(str::to_owned) }
}

/// A function of the model that cannot be reset alone, on a bus with these members.
fn on_bus(faults: &Arc<Faults>, bus: Vec<BusMember>, policy: ResetPolicy) -> Result<Setup, Error> {
    // The host has enabled bus mastering.
    let config = config_of([0; 6], &[(COMMAND.into(), &[6, 0])]);
    Setup::assign(faults, config, &[0x4000], |device| device.without_reset(bus), policy)
}

fn own_bus() -> Vec<BusMember> {
    vec![member("01:00.0", true, Some("vfio-pci")), member("01:00.1", true, Some("vfio-pci"))]
}

fn started(setup: Setup) -> Setup {
    setup.write32(0x10, 0xe000_0000);
    setup.write16(COMMAND, 6);
    setup
}

#[test]
fn refuses_a_function_without_a_reset_and_reports_the_reason() {
    let foreign =
        vec![member("01:00.0", true, Some("vfio-pci")), member("01:00.1", false, Some("e1000e"))];
    let cases = [
        (vec![], "0000:01:00.0: it has no reset of its own, and its bus has none (ENODEV); "),
        (
            foreign,
            "0000:01:00.0: it has no reset of its own, and a reset of its bus would also reset \
             0000:01:00.1 (bound to e1000e); ",
        ),
    ];
    for (bus, reason) in cases {
        let faults = Arc::new(Faults::default());
        let text = on_bus(&faults, bus.clone(), ResetPolicy::Required).err().unwrap().to_string();
        let advice = "a guest would get it in the state in which its last user left it: \
                      'reset=none' takes it so";
        assert_eq!(text, format!("{reason}{advice}"));
        assert_eq!(faults.made(Call::ResetBus), 0, "a bus with foreign members is not reset");
        let taken = on_bus(&faults, bus, ResetPolicy::IfPossible).unwrap();
        assert_eq!(taken.function.reset_kind(), Reset::Nothing);
    }
}

#[test]
fn resets_an_own_bus_at_attach_and_shutdown_but_not_for_the_guest() {
    let setup = on_bus(&Arc::default(), own_bus(), ResetPolicy::Required).unwrap();
    assert_eq!(setup.faults.made(Call::ResetBus), 1, "at attach");
    let setup = started(setup);
    assert_eq!(setup.read32(EXPRESS + 4) >> 28 & 1, 0, "the guest sees no FLR");
    setup.write16(EXPRESS_CONTROL, 0x8000);
    assert_eq!(setup.faults.made(Call::ResetBus), 1);
    assert_eq!(setup.read16(COMMAND), 6, "not reset");
    setup.function.shutdown().unwrap();
    assert_eq!(setup.faults.made(Call::ResetBus), 2);
}

#[test]
fn leaves_the_reset_to_the_kernel_where_it_resets_a_closed_device() {
    let setup = started(Setup::new(config_of([0; 6], &[]), &[0x4000]));
    setup.function.shutdown_before_close().unwrap();
    assert_eq!(setup.faults.made(Call::Reset), 0);
    let mut command = [0xff; 2];
    setup.device.config(COMMAND.into(), &mut command).unwrap();
    assert_eq!(command, [0, 0], "no DMA");
    setup.function.shutdown_before_close().unwrap();
    assert_eq!(setup.read32(0), u32::MAX, "it has ended");

    let setup = started(on_bus(&Arc::default(), own_bus(), ResetPolicy::Required).unwrap());
    setup.function.shutdown_before_close().unwrap();
    assert_eq!(setup.faults.made(Call::ResetBus), 2, "at attach, and at the end");
}

#[test]
fn resets_a_device_whose_dma_is_not_seen_to_end_before_it_is_closed() {
    for call in [Call::Write, Call::Read] {
        let setup = started(Setup::new(config_of([0; 6], &[]), &[0x4000]));
        setup.faults.fail(call, 0, libc::EIO);
        let error = setup.function.shutdown_before_close().unwrap_err().to_string();
        assert!(error.contains("(os error 5)"), "{call:?}: {error}");
        assert_eq!(setup.faults.made(Call::Reset), 1, "{call:?}");
    }
    // All-ones: the device does not respond.
    let setup = started(Setup::new(config_of([0; 6], &[]), &[0x4000]));
    setup.device.set_absent(true).unwrap();
    assert!(setup.function.shutdown_before_close().is_err());
    assert_eq!(setup.faults.made(Call::Reset), 1);
}

#[test]
fn stops_bus_mastering_before_a_reset() {
    // A failed bus reset does not undo the write before it.
    let faults = Arc::new(Faults::default());
    faults.fail(Call::ResetBus, 0, libc::EIO);
    let error = on_bus(&faults, own_bus(), ResetPolicy::Required).err().unwrap().to_string();
    assert!(error.starts_with("0000:01:00.0: VFIO_DEVICE_PCI_HOT_RESET: "), "{error}");
    assert_eq!(faults.made(Call::Write), 1, "COMMAND, at attach");
    faults.fail(Call::Write, 0, libc::EIO);
    assert!(on_bus(&faults, own_bus(), ResetPolicy::Required).is_err());
    assert_eq!(faults.made(Call::ResetBus), 1, "no reset while it can do DMA");
    for at_end in [false, true] {
        let setup = started(Setup::new(config_of([0; 6], &[]), &[0x4000]));
        setup.faults.fail(Call::Reset, 0, libc::EIO);
        let end = if at_end { setup.function.shutdown() } else { setup.function.reset().1 };
        assert!(end.is_err());
        assert_eq!(setup.real(COMMAND.into(), 2), [0, 0]);
    }
}

#[test]
fn reports_every_failure_and_completes_the_reset() {
    let failures = [
        (Call::RemoveSlot, "0000:01:00.0: cannot remove the memory slot of BAR0: "),
        (Call::Write, "0000:01:00.0: cannot write region 7: "),
        (Call::Reset, "0000:01:00.0: VFIO_DEVICE_RESET: "),
    ];
    for (call, expected) in failures {
        let setup = started(Setup::new(config_of([0; 6], &[]), &[0x4000]));
        setup.faults.fail(call, 0, libc::EIO);
        let text = setup.function.reset().1.unwrap_err().to_string();
        assert!(text.starts_with(expected), "{call:?}: {text}");
        assert_eq!(setup.faults.made(Call::Reset), 1, "{call:?}");
        assert_eq!(setup.guest.slots(), [], "{call:?}");
        assert_eq!(setup.read16(COMMAND), 0, "{call:?}");
    }
}

#[test]
fn returns_the_first_failure_and_logs_the_second() {
    let setup = started(Setup::new(config_of([0; 6], &[]), &[0x4000]));
    setup.faults.fail(Call::Write, 0, libc::EIO);
    setup.faults.fail(Call::Reset, 0, libc::EIO);
    let (result, lines) = logged(|| setup.function.reset().1);
    let text = result.unwrap_err().to_string();
    assert!(text.starts_with("0000:01:00.0: cannot write region 7: "), "{text}");
    assert_eq!(lines, 1);
}

#[test]
fn both_kinds_of_flr_restore_the_power_on_state() {
    let af: Extra<'_> = &[(0x41, &[0xa0]), (0xa0, &[0x13, 0, 6, 3])];
    for (extra, register, value) in [(&[][..], EXPRESS_CONTROL, 0x8000), (af, 0xa4, 1)] {
        let setup = started(Setup::new(config_of([0; 6], extra), &[0x4000]));
        setup.write16(0x3c, 0x000b);
        let effects = setup.function.config_write(register, &u16::to_le_bytes(value));
        assert!(effects.slots_freed, "{register:#x}");
        assert_eq!(setup.faults.made(Call::Reset), 1, "{register:#x}");
        assert_eq!(setup.guest.slots(), [], "{register:#x}");
        let found =
            (setup.read16(COMMAND), setup.read32(0x10), setup.read16(0x3c), setup.read16(register));
        assert_eq!(found, (0, 0, 0, 0), "{register:#x}");
        assert_eq!(
            started(setup).guest.slots(),
            [range(0xe000_0000, 0x4000)],
            "it works after the reset"
        );
    }
}

#[test]
fn ignores_the_flr_bit_of_a_function_without_flr() {
    let without: Extra<'_> = &[(0x41, &[0xa0]), (0xa0, &[0x13, 0x50, 6, 1]), (0x54, &[0; 4])];
    let setup = started(Setup::new(config_of([0; 6], without), &[0x4000]));
    setup.write16(EXPRESS_CONTROL, 0x8000);
    setup.write16(0xa4, 1);
    assert_eq!(setup.faults.made(Call::Reset), 0);
    assert_eq!(setup.real(EXPRESS_CONTROL.into(), 2), [0, 0], "the bit is not forwarded");
}

#[test]
fn wakes_a_function_in_d3_that_has_no_reset() {
    let setup = on_bus(&Arc::default(), vec![], ResetPolicy::IfPossible).unwrap();
    let setup = started(setup);
    setup.write16(PM_CONTROL, 3);
    assert_eq!(setup.guest.slots(), []);
    setup.function.reset().1.unwrap();
    assert_eq!(setup.real(PM_CONTROL.into(), 1), [0]);
    assert_eq!(started(setup).guest.slots(), [range(0xe000_0000, 0x4000)]);
}
