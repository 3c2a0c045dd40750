//! Decisions as a table, and a model device on the main loop.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use event_manager::{EventManager, SubscriberOps};
use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::model::{Call, Faults, Guest, PciDevice};
use vfio_passthrough::{PassthroughFunction, ResetPolicy};

use super::*;
use crate::counters::FunctionCounts;
use crate::host::epoll::Subscriber;
use crate::passthrough::coalesced::CoalescedWrites;
use crate::passthrough::slots::{Ejected, Ejections, Registers};

#[test]
fn the_policy_decides_the_answer_to_each_event() {
    let cases = [
        (HostEvent::Request, OnError::Stop, Reset::Function, Answer::Detach),
        (HostEvent::Request, OnError::Report, Reset::Nothing, Answer::Detach),
        (HostEvent::Error, OnError::Stop, Reset::Function, Answer::Stop),
        (HostEvent::Error, OnError::Reset, Reset::Function, Answer::Recover),
        (HostEvent::Error, OnError::Reset, Reset::Bus, Answer::Stop),
        (HostEvent::Error, OnError::Reset, Reset::Nothing, Answer::Stop),
        (HostEvent::Error, OnError::Detach, Reset::Bus, Answer::Detach),
        (HostEvent::Error, OnError::Report, Reset::Function, Answer::Report),
    ];
    for (event, policy, reset, answer) in cases {
        assert_eq!(decide(event, policy, reset), answer, "{event:?}, {policy:?}, {reset:?}");
    }
}

struct Setup {
    faults: Arc<Faults>,
    device: Arc<PciDevice>,
    function: Arc<PassthroughFunction>,
    failures: Receiver<Error>,
    changes: Arc<Changes>,
    events: Arc<Mutex<DeviceEvents>>,
    manager: EventManager<Subscriber>,
}

fn setup(policy: OnError) -> Setup {
    setup_with(policy, None)
}

fn setup_with(policy: OnError, slots: Option<Arc<Slots>>) -> Setup {
    let faults = Arc::new(Faults::default());
    let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
    let (address, host) = ("01:00.0".parse().unwrap(), Guest::new(faults.clone()).services());
    let function = PassthroughFunction::new(address, device.clone(), &host, ResetPolicy::Required);
    let function = Arc::new(function.unwrap());
    let (failed, failures) = channel();
    let writes = Arc::new(CoalescedWrites::default());
    let guest_function = GuestFunction::new(&function, writes, &FunctionCounts::default());
    let guest_function = Arc::new(guest_function);
    let changes = Arc::new(Changes::new(true).unwrap());
    changes.push(Change::Came(DevFn::from(8), guest_function));
    let failed = move |error| failed.send(error).unwrap();
    let events = Arc::new(Mutex::new(DeviceEvents::new(changes.clone(), policy, slots, failed)));
    let mut manager = EventManager::<Subscriber>::new().unwrap();
    manager.add_subscriber(events.clone());
    Setup { faults, device, function, failures, changes, events, manager }
}

impl Setup {
    fn run(&mut self) {
        self.manager.run_with_timeout(1000).unwrap();
    }
}

#[test]
fn detaches_a_requested_device_and_the_loop_continues() {
    let mut setup = setup(OnError::Stop);
    setup.device.ask_for().unwrap();
    setup.device.ask_for().unwrap();
    setup.run();
    assert!(setup.device.is_given_back());
    assert!(setup.failures.try_recv().is_err());
    assert_eq!(setup.manager.run_with_timeout(0).unwrap(), 0, "no event is pending");
}

#[test]
fn detaches_a_device_that_was_requested_as_the_loop_ended() {
    let setup = setup(OnError::Stop);
    setup.device.ask_for().unwrap();
    setup.events.lock().unwrap().catch_up();
    assert!(setup.device.is_given_back());
}

#[test]
fn an_error_stops_the_guest_and_names_the_device_and_the_options() {
    let mut setup = setup(OnError::Stop);
    setup.device.fail().unwrap();
    setup.run();
    assert!(!setup.function.is_detached());
    let error = setup.failures.try_recv().unwrap();
    let text = error.to_string();
    for part in
        ["0000:01:00.0", "uncorrectable error", "dmesg", "--on-error reset", "detach", "report"]
    {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn an_error_resets_or_detaches_the_device_or_is_only_reported() {
    // The kernel resets a detached device when it is closed.
    for (policy, resets, is_detached) in
        [(OnError::Reset, 1, false), (OnError::Detach, 0, true), (OnError::Report, 0, false)]
    {
        let mut setup = setup(policy);
        setup.device.fail().unwrap();
        setup.run();
        let found = (setup.faults.made(Call::Reset), setup.function.is_detached());
        assert_eq!(found, (resets, is_detached), "{policy:?}");
        assert!(setup.failures.try_recv().is_err(), "{policy:?}");
    }
}

#[test]
fn an_error_of_a_device_that_cannot_be_reset_stops_the_guest() {
    let mut setup = setup(OnError::Reset);
    setup.faults.fail(Call::Reset, 0, nix::libc::EIO);
    setup.device.fail().unwrap();
    setup.run();
    assert!(setup.failures.try_recv().is_ok());
}

#[test]
fn a_guest_with_hot_plug_is_asked_first_and_the_second_request_detaches() {
    let signal = Arc::new(nix::sys::eventfd::EventFd::new().unwrap());
    let ejected = Ejected(Arc::new(Ejections::new(Arc::clone(&signal))));
    let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
    let raised = interrupt.try_clone().unwrap();
    let slots = Arc::new(Slots::new(Arc::new(Registers::new([1], ejected)), interrupt, signal));
    let mut setup = setup_with(OnError::Stop, Some(Arc::clone(&slots)));
    setup.device.ask_for().unwrap();
    setup.run();
    assert!(raised.read().is_ok() && !setup.function.is_detached());
    assert_eq!(slots.still_asked(), [1]);
    // The guest boots, and has not read the request.
    slots.remind();
    assert!(raised.read().is_ok());
    setup.device.ask_for().unwrap();
    setup.run();
    assert!(setup.function.is_detached() && raised.read().is_err());
}

#[test]
fn a_function_that_left_is_no_longer_watched() {
    let mut setup = setup(OnError::Stop);
    setup.changes.push(Change::Left(setup.function.address()));
    setup.run();
    setup.device.ask_for().unwrap();
    assert_eq!(setup.manager.run_with_timeout(10).unwrap(), 0);
    assert!(!setup.function.is_detached());
}
