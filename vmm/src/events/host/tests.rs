//! Decisions as a table, and a device of the model on the main loop.

use std::sync::Mutex;

use event_manager::{EventManager, SubscriberOps};
use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::model::{Call, Faults, Guest, PciDevice};
use vfio_passthrough::{PassthroughFunction, ResetPolicy};

use super::*;
use crate::events::Subscriber;
use crate::posted::Posted;
use crate::stats::Stats;

#[test]
fn what_is_told_is_answered_as_was_asked_for() {
    let cases = [
        (Told::Request, OnError::Stop, Reset::Function, Answer::GiveUp),
        (Told::Request, OnError::Report, Reset::Nothing, Answer::GiveUp),
        (Told::Error, OnError::Stop, Reset::Function, Answer::Stop),
        (Told::Error, OnError::Reset, Reset::Function, Answer::Recover),
        (Told::Error, OnError::Reset, Reset::Bus, Answer::Stop),
        (Told::Error, OnError::Reset, Reset::Nothing, Answer::Stop),
        (Told::Error, OnError::Detach, Reset::Bus, Answer::GiveUp),
        (Told::Error, OnError::Report, Reset::Function, Answer::Report),
    ];
    for (told, policy, reset, answer) in cases {
        assert_eq!(decide(told, policy, reset), answer, "{told:?}, {policy:?}, {reset:?}");
    }
}

struct Setup {
    faults: Arc<Faults>,
    device: Arc<PciDevice>,
    function: Arc<PassthroughFunction>,
    stop: Arc<Stop>,
    events: Arc<Mutex<DeviceEvents>>,
    manager: EventManager<Subscriber>,
}

fn setup(policy: OnError) -> Setup {
    let faults = Arc::new(Faults::default());
    let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
    let (address, host) = ("01:00.0".parse().unwrap(), Guest::new(faults.clone()).host());
    let function = PassthroughFunction::new(address, device.clone(), &host, ResetPolicy::Required);
    let function = Arc::new(function.unwrap());
    let stop = Arc::new(Stop::new().unwrap());
    let collect = Arc::new(Posted::default());
    let guest_function = GuestFunction::new(&function, collect, &Stats::default());
    let functions = vec![Arc::new(guest_function)];
    let events = Arc::new(Mutex::new(DeviceEvents::new(functions, policy, &stop)));
    let mut manager = EventManager::<Subscriber>::new().unwrap();
    manager.add_subscriber(events.clone());
    Setup { faults, device, function, stop, events, manager }
}

impl Setup {
    fn run(&mut self) {
        self.manager.run_with_timeout(1000).unwrap();
    }
}

#[test]
fn a_device_that_the_host_asks_for_is_given_up_and_the_loop_goes_on() {
    let mut setup = setup(OnError::Stop);
    setup.device.ask_for().unwrap();
    setup.device.ask_for().unwrap();
    setup.run();
    assert!(setup.device.is_given_back());
    assert!(!setup.stop.is_requested());
    assert_eq!(setup.manager.run_with_timeout(0).unwrap(), 0, "it is answered");
}

#[test]
fn what_was_asked_for_as_the_loop_ended_is_given_up_too() {
    let setup = setup(OnError::Stop);
    setup.device.ask_for().unwrap();
    setup.events.lock().unwrap().catch_up();
    assert!(setup.device.is_given_back());
}

#[test]
fn an_error_stops_and_says_which_device_what_and_how_to_choose_otherwise() {
    let mut setup = setup(OnError::Stop);
    setup.device.fail().unwrap();
    setup.run();
    assert!(!setup.function.is_detached());
    drop((setup.manager, setup.events));
    let outcome = Arc::into_inner(setup.stop).and_then(Stop::into_outcome);
    let Some(Outcome::Failed(error)) = outcome else { panic!("{outcome:?}") };
    let text = error.to_string();
    for part in
        ["0000:01:00.0", "uncorrectable error", "dmesg", "--on-error reset", "detach", "report"]
    {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn an_error_resets_detaches_or_is_reported() {
    for (policy, resets, lost) in
        [(OnError::Reset, 1, false), (OnError::Detach, 1, true), (OnError::Report, 0, false)]
    {
        let mut setup = setup(policy);
        setup.device.fail().unwrap();
        setup.run();
        let found = (setup.faults.made(Call::Reset), setup.function.is_detached());
        assert_eq!(found, (resets, lost), "{policy:?}");
        assert!(!setup.stop.is_requested(), "{policy:?}");
    }
}

#[test]
fn a_device_that_cannot_be_reset_after_an_error_stops_the_guest() {
    let mut setup = setup(OnError::Reset);
    setup.faults.fail(Call::Reset, 0, nix::libc::EIO);
    setup.device.fail().unwrap();
    setup.run();
    assert!(setup.stop.is_requested());
}
