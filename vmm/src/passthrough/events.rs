//! Events that the host reports for assigned devices: a request to detach, or an error. [`decide`]
//! chooses the answer, and [`DeviceEvents`] carries it out.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use devices::{DevFn, PciFunction as _, SlotsFreed};
use event_manager::{EventOps, Events, MutEventSubscriber};
use vfio_passthrough::PciAddress;
use vfio_passthrough::function::Reset;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::function::GuestFunction;
use super::slots::Slots;
use crate::config::OnError;
use crate::error::Error;
use crate::host::epoll::listen;

/// The number of logged errors per device, because a guest can cause errors.
const MOST_REPORTS: u32 = 16;

/// An event that the host reports for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostEvent {
    /// The host requests the device.
    Request,
    /// The device reported an uncorrectable error.
    Error,
}

/// The reaction to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Stop,
    Recover,
    Detach,
    Report,
}

fn decide(event: HostEvent, policy: OnError, reset: Reset) -> Answer {
    match (event, policy, reset) {
        (HostEvent::Request, ..) | (HostEvent::Error, OnError::Detach, _) => Answer::Detach,
        (HostEvent::Error, OnError::Report, _) => Answer::Report,
        (HostEvent::Error, OnError::Reset, Reset::Function) => Answer::Recover,
        // A bus reset would also reset other devices that the guest uses.
        (HostEvent::Error, OnError::Reset | OnError::Stop, _) => Answer::Stop,
    }
}

/// A function that came or left while the main loop runs.
pub(crate) enum Change {
    Came(DevFn, Arc<GuestFunction>),
    Left(PciAddress),
}

/// Changes that the main loop has not seen yet.
pub(crate) struct Changes {
    pending: Mutex<Vec<Change>>,
    /// Wakes the main loop; `None` if all changes come before it runs.
    signal: Option<EventFd>,
}

impl Changes {
    /// No change. Without `later`, all changes come before the main loop runs.
    pub(crate) fn new(later: bool) -> io::Result<Self> {
        let signal = later.then(|| EventFd::new(EFD_NONBLOCK)).transpose()?;
        Ok(Self { pending: Mutex::default(), signal })
    }

    /// Adds a change, and wakes the main loop.
    pub(crate) fn push(&self, change: Change) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).push(change);
        // The counter of an eventfd overflows after 2^64 changes.
        let _ = self.signal.as_ref().map(|signal| signal.write(1));
    }

    fn take(&self) -> Vec<Change> {
        let _ = self.signal.as_ref().map(EventFd::read);
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Subscribes to the events of all assigned devices of one VM.
pub(crate) struct DeviceEvents {
    devices: BTreeMap<u32, Device>,
    next: u32,
    changes: Arc<Changes>,
    policy: OnError,
    /// The slots of a guest whose devices can leave.
    slots: Option<Arc<Slots>>,
    failed: Box<dyn Fn(Error) + Send>,
}

/// The key of [`Changes`] among the devices.
const CHANGES: u32 = u32::MAX;

struct Device {
    place: DevFn,
    function: Arc<GuestFunction>,
    reports: u32,
    /// The guest was asked for the device.
    asked: bool,
}

impl DeviceEvents {
    /// The events of the functions that come by `changes`. `failed` is called when the guest must
    /// stop.
    pub(crate) fn new(
        changes: Arc<Changes>,
        policy: OnError,
        slots: Option<Arc<Slots>>,
        failed: impl Fn(Error) + Send + 'static,
    ) -> Self {
        let devices = BTreeMap::new();
        Self { devices, next: 0, changes, policy, slots, failed: Box::new(failed) }
    }

    /// Answers all pending events. Otherwise a request that came while the main loop ended would
    /// wait for the guest's next life.
    pub(crate) fn catch_up(&mut self) {
        let keys: Vec<_> = self.devices.keys().copied().collect();
        keys.into_iter().for_each(|key| self.handle(key));
    }

    /// Answers a pending event of a device.
    fn handle(&mut self, key: u32) {
        let (policy, slots, failed) = (self.policy, self.slots.as_deref(), &self.failed);
        let device = self.devices.get_mut(&key);
        let freed = device.and_then(|device| device.handle(policy, slots, failed));
        if freed == Some(SlotsFreed(true)) {
            self.devices.values().for_each(|device| device.function.retry_placement());
        }
    }

    fn change(&mut self, change: Change, ops: &mut EventOps<'_>) {
        match change {
            Change::Came(place, function) => {
                let key = self.next;
                self.next = key.wrapping_add(1) % CHANGES;
                events(&function).for_each(|event| {
                    listen(ops, Events::with_data(event, key, EventSet::IN));
                });
                self.devices.insert(key, Device { place, function, reports: 0, asked: false });
            }
            Change::Left(address) => self.devices.retain(|_, device| {
                let left = device.function.function().address() == address;
                if left {
                    // The events are open until the function is dropped here.
                    events(&device.function)
                        .for_each(|event| drop(ops.remove(Events::empty(event))));
                }
                !left
            }),
        }
    }
}

fn events(function: &GuestFunction) -> impl Iterator<Item = &EventFd> {
    let function = function.function();
    [function.request_event(), function.error_event()].into_iter().flatten()
}

impl MutEventSubscriber for DeviceEvents {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            CHANGES => {
                let changes = self.changes.take();
                changes.into_iter().for_each(|change| self.change(change, ops));
            }
            key => self.handle(key),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Some(signal) = &self.changes.signal {
            listen(ops, Events::with_data(signal, CHANGES, EventSet::IN));
        }
        let changes = self.changes.take();
        changes.into_iter().for_each(|change| self.change(change, ops));
    }
}

impl Device {
    fn handle(
        &mut self,
        policy: OnError,
        slots: Option<&Slots>,
        failed: &dyn Fn(Error),
    ) -> Option<SlotsFreed> {
        let is_signalled =
            |event: Option<&EventFd>| event.is_some_and(|event| event.read().is_ok());
        let function = self.function.function();
        let has_error = is_signalled(function.error_event());
        // A request has priority over an error.
        let event = match is_signalled(function.request_event()) {
            true => Some(HostEvent::Request),
            false => has_error.then_some(HostEvent::Error),
        };
        let event = event.filter(|_| !function.is_detached())?;
        match slots.filter(|_| event == HostEvent::Request && !self.asked) {
            Some(slots) => {
                self.ask(slots);
                None
            }
            None => self.answer(event, policy, failed),
        }
    }

    /// Asks the guest for the device. VFIO repeats its request after 10 s (vfio_unregister_group_dev),
    /// which is then the guest's time-out.
    fn ask(&mut self, slots: &Slots) {
        let address = self.function.function().address();
        log::warn!("{address}: the host requests the device; the guest is asked for it");
        self.asked = true;
        slots.ask(self.place.slot());
    }

    fn answer(
        &mut self,
        event: HostEvent,
        policy: OnError,
        failed: &dyn Fn(Error),
    ) -> Option<SlotsFreed> {
        let function = Arc::clone(&self.function);
        let (function, address) = (function.function(), function.function().address());
        let answer = decide(event, policy, function.reset_kind());
        let (effects, result) = match answer {
            Answer::Stop => {
                failed(Error::DeviceError { address });
                return None;
            }
            Answer::Recover => {
                self.report("the VMM resets it, and the guest's driver can start again");
                function.recover()
            }
            Answer::Detach if event == HostEvent::Request => {
                log::warn!("{address}: the host requests the device; the VMM detaches it");
                function.detach()
            }
            Answer::Detach => {
                self.report("the VMM detaches it");
                function.detach()
            }
            Answer::Report => {
                self.report("it stays attached; do not trust its data");
                return None;
            }
        };
        match result {
            Err(error) if answer == Answer::Recover => failed(error.into()),
            Err(error) => log::warn!("{error}"),
            Ok(()) => {}
        }
        Some(self.function.apply(&effects))
    }

    fn report(&mut self, what: &str) {
        self.reports = self.reports.saturating_add(1);
        if self.reports <= MOST_REPORTS {
            let address = self.function.function().address();
            log::warn!(
                "{address}: the device reported an uncorrectable error (see the host's 'dmesg'); {what}"
            );
        }
    }
}

#[cfg(test)]
mod tests;
