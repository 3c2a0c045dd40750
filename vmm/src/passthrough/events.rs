//! Events that the host reports for assigned devices: a request to detach, or an error. [`decide`]
//! chooses the answer, and [`DeviceEvents`] carries it out.

use std::sync::Arc;

use devices::{PciFunction as _, SlotsFreed};
use event_manager::{EventOps, Events, MutEventSubscriber};
use vfio_passthrough::function::Reset;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::function::GuestFunction;
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

/// Subscribes to the events of all assigned devices of one VM.
pub(crate) struct DeviceEvents {
    devices: Vec<Device>,
    policy: OnError,
    failed: Box<dyn Fn(Error) + Send>,
}

struct Device {
    function: Arc<GuestFunction>,
    reports: u32,
}

impl DeviceEvents {
    /// The events of `functions`. `failed` is called when the guest must stop.
    pub(crate) fn new(
        functions: Vec<Arc<GuestFunction>>,
        policy: OnError,
        failed: impl Fn(Error) + Send + 'static,
    ) -> Self {
        let device = |function| Device { function, reports: 0 };
        Self {
            devices: functions.into_iter().map(device).collect(),
            policy,
            failed: Box::new(failed),
        }
    }

    /// Answers all pending events. Otherwise a request that came while the main loop ended would
    /// wait for the guest's next life.
    pub(crate) fn catch_up(&mut self) {
        (0..self.devices.len()).for_each(|index| self.handle(index));
    }

    /// Answers a pending event of the device at `index`.
    fn handle(&mut self, index: usize) {
        let device = self.devices.get_mut(index);
        let freed = device.and_then(|device| device.handle(self.policy, &self.failed));
        if freed == Some(SlotsFreed(true)) {
            self.devices.iter().for_each(|device| device.function.retry_placement());
        }
    }
}

impl MutEventSubscriber for DeviceEvents {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let index = usize::try_from(events.data()).unwrap_or(usize::MAX);
        self.handle(index);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (index, device) in (0..).zip(&self.devices) {
            let function = device.function.function();
            for event in [function.request_event(), function.error_event()].into_iter().flatten() {
                listen(ops, Events::with_data(event, index, EventSet::IN));
            }
        }
    }
}

impl Device {
    fn handle(&mut self, policy: OnError, failed: &dyn Fn(Error)) -> Option<SlotsFreed> {
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
        self.answer(event, policy, failed)
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
