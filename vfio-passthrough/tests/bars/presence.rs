//! Devices that sleep, that do not respond, or that are not what they were.

use std::time::Instant;

use super::*;
use vfio_passthrough::backend::BusMember;
use vfio_passthrough::function::Reset;
use vfio_passthrough::pci::presence::Identity;

const GPA: u32 = 0xe000_0000;
const D3HOT: u8 = 3;
/// The errors of a device that does not respond.
const SILENT: &str = "the device does not respond: its config space reads as all-ones; make the \
                      host look for it again: echo 1 > /sys/bus/pci/devices/0000:01:00.0/remove; \
                      echo 1 > /sys/bus/pci/rescan; if it does not come back, switch the host's \
                      power off and on";

/// Assigns a function with a change made to the device.
fn assigned(
    extra: Extra<'_>,
    change: impl FnOnce(PciDevice) -> PciDevice,
) -> (Arc<Faults>, Result<Setup, Error>) {
    let faults = Arc::new(Faults::default());
    let config = config_of([0; 6], extra);
    let setup = Setup::assign(&faults, config, &[0x4000], change, ResetPolicy::Required);
    (faults, setup)
}

/// A running function, whose BAR0 is in the guest.
fn running() -> Setup {
    started(Setup::new(config_of([0; 6], &[]), &[0x4000]))
}

fn started(setup: Setup) -> Setup {
    setup.write32(0x10, GPA);
    setup.write16(COMMAND, 6);
    assert_eq!(setup.guest.slots(), [range(GPA.into(), 0x4000)]);
    setup
}

/// On a bus of its own, without a reset of the function.
fn on_own_bus(device: PciDevice) -> PciDevice {
    let address = "01:00.0".parse().unwrap();
    let driver = Some("vfio-pci".to_owned());
    device.without_reset(vec![BusMember { address, ours: true, driver }])
}

#[test]
fn wakes_a_device_at_its_assignment() {
    for state in [1, 2, D3HOT] {
        let power: Extra<'_> = &[(PM_CONTROL.into(), &[state, 0])];
        let setup = assigned(power, |device| device).1.unwrap();
        assert_eq!(setup.real(PM_CONTROL.into(), 1), [0], "D{state}");
        assert_eq!(setup.read16(PM_CONTROL), 0, "D{state}");
        started(setup);
    }
}

#[test]
fn wakes_a_device_that_another_program_put_to_sleep() {
    // The kernel believes that the device is in D0, and ignores a write of D0.
    let asleep = |device: PciDevice| {
        device.set_power_state(D3HOT, false).unwrap();
        device
    };
    let setup = assigned(&[], asleep).1.unwrap();
    assert_eq!(setup.real(PM_CONTROL.into(), 1), [0]);
    started(setup);
}

#[test]
fn refuses_a_device_that_stays_asleep() {
    for (state, name) in [(1, "D1"), (2, "D2"), (D3HOT, "D3hot")] {
        let stuck = |device: PciDevice| {
            device.set_power_state(state, true).unwrap();
            device
        };
        let text = assigned(&[], stuck).1.err().unwrap().to_string();
        let expected = format!(
            "0000:01:00.0: at its assignment, the device stays in {name}: it does not wake when D0 \
             is written to its power state; keep the host from suspending it: echo on > \
             /sys/bus/pci/devices/0000:01:00.0/power/control; or make the host look for it again: "
        );
        assert!(text.starts_with(&expected), "{text}");
    }
}

#[test]
fn refuses_a_device_that_does_not_respond() {
    let absent = |device: PciDevice| {
        device.set_absent(true).unwrap();
        device
    };
    let text = assigned(&[], absent).1.err().unwrap().to_string();
    assert_eq!(text, format!("0000:01:00.0: at its assignment, {SILENT}"));
    let vendor: Extra<'_> = &[(0, &[0xff; 4])];
    let text = assigned(vendor, |device| device).1.err().unwrap().to_string();
    assert_eq!(text, format!("0000:01:00.0: at its assignment, {SILENT}"));
}

#[test]
fn waits_one_second_for_a_device_that_is_not_ready() {
    let begin = Instant::now();
    let text = assigned(&[(0, &[1, 0, 0xff, 0xff])], |device| device).1.err().unwrap().to_string();
    let taken = begin.elapsed().as_millis();
    assert!((1000..8000).contains(&taken), "{taken} ms");
    let expected = "0000:01:00.0: at its assignment, the device is not ready: it answers config \
                    reads with Configuration Request Retry Status; make the host look";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn uses_a_device_that_responds_after_a_while() {
    let setup = running();
    setup.device.after_reset(AfterReset::Absent).unwrap();
    let device = setup.device.clone();
    let comes_back = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        device.set_absent(false).unwrap();
    });
    let (result, lines) = logged(|| setup.function.reset().1);
    comes_back.join().unwrap();
    assert_eq!((result.err().map(|error| error.to_string()), lines), (None, 0));
    started(setup);
}

#[test]
fn refuses_another_device_than_the_host_recorded() {
    let of = |vendor, device| Identity { vendor, device };
    assert!(assigned(&[], |device| device.recorded_as(of(0x1b36, 0x10))).1.is_ok());
    for recorded in [of(0x1b36, 0x11), of(0x8086, 0x10)] {
        let text = assigned(&[], |device| device.recorded_as(recorded)).1.err().unwrap();
        let text = text.to_string();
        let expected = format!(
            "0000:01:00.0: at its assignment, the device is another one: it was {recorded} (class \
             010802, revision 02), and it is 1b36:0010 (class 010802, revision 02); make the host"
        );
        assert!(text.starts_with(&expected), "{text}");
    }
}

#[test]
fn refuses_a_device_whose_config_space_cannot_be_read() {
    let cases = [
        (Fault::Errno(libc::EIO), "Input/output error (os error 5); the device does not respond: "),
        (Fault::Errno(libc::ENODEV), "No such device (os error 19); the device does not respond: "),
        (Fault::Short(16), "unexpected end of file"),
        (Fault::Short(0), "unexpected end of file"),
    ];
    for (fault, expected) in cases {
        // The first call describes the region of config space.
        let (faults, config) = (Arc::new(Faults::default()), config_of([0; 6], &[]));
        faults.inject(1..2, fault);
        let result = Setup::assign(&faults, config, &[0x4000], |it| it, ResetPolicy::Required);
        let text = result.err().unwrap().to_string();
        assert!(text.starts_with("0000:01:00.0: cannot read region 7: "), "{text}");
        assert!(text.contains(expected), "{text}");
    }
}

/// What a device is after a reset, and the error of the reset without its remedy.
fn unfit() -> [(AfterReset, &'static str); 2] {
    [
        (AfterReset::Absent, "the device does not respond: its config space reads as all-ones; "),
        (
            AfterReset::OtherRevision(9),
            "the device is another one: it was 1b36:0010 (class 010802, revision 02), and it is \
             1b36:0010 (class 010802, revision 09); ",
        ),
    ]
}

#[test]
fn a_reset_after_which_the_device_is_unfit_has_failed() {
    for (state, expected) in unfit() {
        let expected = format!("0000:01:00.0: after VFIO_DEVICE_RESET, {expected}");
        let reset = |act: fn(&PassthroughFunction) -> Result<(), Error>| {
            let setup = running();
            setup.device.after_reset(state).unwrap();
            let text = act(&setup.function).unwrap_err().to_string();
            assert!(text.starts_with(&expected), "{state:?}: {text}");
            assert_eq!(setup.guest.slots(), [], "{state:?}");
            assert_eq!(setup.faults.alarms(), [""; 0], "{state:?}");
            setup
        };
        reset(PassthroughFunction::shutdown);
        reset(|function| function.recover().1);
        let setup = reset(|function| function.reset().1);
        // The guest tries to use it: it gets all-ones, and no memory of the device.
        setup.write32(0x10, GPA);
        setup.write16(COMMAND, 6);
        assert_eq!((setup.read32(0), setup.read16(COMMAND)), (u32::MAX, u16::MAX), "{state:?}");
        assert_eq!(setup.bar_read32(0, 0), u32::MAX, "{state:?}");
        assert_eq!(setup.guest.slots(), [], "{state:?}");
    }
}

#[test]
fn a_guest_whose_flr_kills_the_device_reads_all_ones_and_one_line_is_logged() {
    for (state, _) in unfit() {
        let setup = running();
        setup.device.after_reset(state).unwrap();
        let ((), lines) = logged(|| {
            setup.write16(EXPRESS_CONTROL, 0x8000);
            (0..3).for_each(|_| assert_eq!(setup.read32(0), u32::MAX));
            setup.write16(COMMAND, 6);
            assert_eq!(setup.bar_read32(0, 0), u32::MAX);
        });
        assert_eq!(lines, 1, "{state:?}");
        assert_eq!((setup.guest.slots(), setup.faults.alarms()), (vec![], vec![]), "{state:?}");
    }
}

#[test]
fn a_later_reset_brings_a_dead_device_back() {
    let setup = running();
    setup.device.after_reset(AfterReset::Absent).unwrap();
    assert!(setup.function.reset().1.is_err());
    setup.device.after_reset(AfterReset::Present).unwrap();
    setup.function.reset().1.unwrap();
    assert_eq!(setup.read32(0), 0x0010_1b36);
    started(setup);
}

#[test]
fn a_function_is_awake_after_each_reset() {
    let setup = running();
    setup.device.after_reset(AfterReset::InD3hot).unwrap();
    setup.function.reset().1.unwrap();
    assert_eq!(setup.real(PM_CONTROL.into(), 1), [0]);
    let setup = started(setup);
    setup.device.after_reset(AfterReset::InD3hot).unwrap();
    setup.function.recover().1.unwrap();
    assert_eq!(setup.guest.slots(), [range(GPA.into(), 0x4000)]);
    setup.device.after_reset(AfterReset::InD3hot).unwrap();
    setup.write16(EXPRESS_CONTROL, 0x8000);
    assert_eq!(setup.read16(PM_CONTROL), 0);
    started(setup);
}

#[test]
fn a_bus_reset_after_which_the_device_is_unfit_has_failed() {
    let absent = |device: PciDevice| {
        let device = on_own_bus(device);
        device.after_reset(AfterReset::Absent).unwrap();
        device
    };
    let text = assigned(&[], absent).1.err().unwrap().to_string();
    assert_eq!(text, format!("0000:01:00.0: after VFIO_DEVICE_PCI_HOT_RESET, {SILENT}"));
    let asleep = |device: PciDevice| {
        let device = on_own_bus(device);
        device.after_reset(AfterReset::InD3hot).unwrap();
        device
    };
    let setup = assigned(&[], asleep).1.unwrap();
    assert_eq!(setup.function.reset_kind(), Reset::Bus);
    started(setup);
}

#[test]
fn a_device_that_does_not_return_from_d3hot_reads_all_ones() {
    let setup = running();
    setup.write16(PM_CONTROL, D3HOT.into());
    assert_eq!(setup.guest.slots(), []);
    setup.device.set_absent(true).unwrap();
    let ((), lines) = logged(|| {
        setup.write16(PM_CONTROL, 0);
        (0..3).for_each(|_| assert_eq!(setup.read16(PM_CONTROL), u16::MAX));
        setup.write16(PM_CONTROL, 0);
    });
    assert_eq!(lines, 1);
    assert_eq!((setup.guest.slots(), setup.faults.alarms()), (vec![], vec![]));
    // It comes back, still in D3hot.
    setup.device.set_absent(false).unwrap();
    assert_eq!(setup.read16(PM_CONTROL), u16::from(D3HOT));
    assert_eq!(setup.guest.slots(), []);
    setup.write16(PM_CONTROL, 0);
    assert_eq!(setup.guest.slots(), [range(GPA.into(), 0x4000)]);
}

#[test]
fn a_device_that_does_not_wake_for_the_guest_is_logged_once_per_write() {
    let setup = running();
    setup.device.set_power_state(D3HOT, true).unwrap();
    let ((), lines) = logged(|| setup.write16(PM_CONTROL, D3HOT.into()));
    assert_eq!(lines, 0);
    let ((), lines) = logged(|| setup.write16(PM_CONTROL, 0));
    assert_eq!((lines, setup.read16(PM_CONTROL)), (1, u16::from(D3HOT)));
    assert_eq!((setup.guest.slots(), setup.faults.alarms()), (vec![], vec![]));
}

#[test]
fn a_device_that_dies_in_use_reads_all_ones_until_it_is_back() {
    let setup = running();
    setup.device.set_absent(true).unwrap();
    let ((), lines) = logged(|| {
        // Status is the device's; the IDs are emulated.
        for offset in [6, 0, 0x10, 0x2c] {
            assert_eq!(setup.read16(offset), u16::MAX, "{offset:#x}");
        }
        assert_eq!(setup.bar_read32(0, 0), u32::MAX);
        setup.write16(COMMAND, 6);
    });
    assert_eq!((lines, setup.guest.slots()), (1, vec![]));
    setup.device.set_absent(false).unwrap();
    assert_eq!(setup.read32(0), 0x0010_1b36);
    assert_eq!(setup.guest.slots(), [range(GPA.into(), 0x4000)]);
    setup.function.shutdown().unwrap();
}

#[test]
fn a_device_that_the_host_unplugged_reads_all_ones() {
    let setup = running();
    (0..2).for_each(|nth| setup.faults.fail(Call::Read, nth, libc::ENODEV));
    assert_eq!(setup.read16(6), u16::MAX);
    assert_eq!(setup.guest.slots(), []);
    assert_eq!(setup.read32(0), 0x0010_1b36, "it is plugged again");
}

#[test]
fn a_register_that_is_all_ones_is_not_a_dead_device() {
    let setup = Setup::new(config_of([0; 6], &[(0x90, &[0xff; 4])]), &[0x4000]);
    let setup = started(setup);
    let (found, lines) = logged(|| setup.read32(0x90));
    assert_eq!((found, lines), (u32::MAX, 0));
    assert_eq!((setup.read32(0), setup.guest.slots().len()), (0x0010_1b36, 1));
}

#[test]
fn a_reset_is_retried_while_the_kernel_holds_the_lock() {
    for errno in [libc::EAGAIN, libc::EINTR] {
        let setup = running();
        (0..3).for_each(|nth| setup.faults.fail(Call::Reset, nth, errno));
        let (result, lines) = logged(|| setup.function.reset().1);
        assert_eq!((result.is_ok(), lines, setup.faults.made(Call::Reset)), (true, 0, 4));
        (0..3).for_each(|nth| setup.faults.fail(Call::Reset, nth, errno));
        setup.write16(EXPRESS_CONTROL, 0x8000);
        assert_eq!(setup.faults.made(Call::Reset), 8, "a guest's FLR");
        let (faults, setup) = assigned(&[], on_own_bus);
        (0..3).for_each(|nth| faults.fail(Call::ResetBus, nth, errno));
        let setup = setup.unwrap();
        setup.function.reset().1.unwrap();
        assert_eq!(faults.made(Call::ResetBus), 5, "one at assignment");
    }
}

#[test]
fn a_lock_that_is_held_for_a_second_is_an_error_that_says_so() {
    let setup = running();
    (0..1000).for_each(|nth| setup.faults.fail(Call::Reset, nth, libc::EAGAIN));
    let begin = Instant::now();
    let text = setup.function.reset().1.unwrap_err().to_string();
    let taken = begin.elapsed().as_millis();
    assert!((1000..8000).contains(&taken), "{taken} ms");
    assert_eq!(
        text,
        "0000:01:00.0: VFIO_DEVICE_RESET: Resource temporarily unavailable (os error 11); the \
         host's kernel holds the device's lock: it resets, unbinds or recovers the device (see \
         'dmesg'), or a process writes to its files in sysfs"
    );
    setup.faults.clear();
    setup.function.reset().1.unwrap();
    setup.faults.fail(Call::Reset, 0, libc::ENOTTY);
    let text = setup.function.reset().1.unwrap_err().to_string();
    assert!(text.contains("; the device did not come back from the reset: see 'dmesg'"), "{text}");
}
