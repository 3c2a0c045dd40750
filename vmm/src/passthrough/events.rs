//! What the host reports of assigned devices: a request for one, or an error of one. [`decide`]
//! says what is done, and [`DeviceEvents`] does it.

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

/// How many errors of one device are logged: a guest can bring errors about.
const MOST_REPORTS: u32 = 16;

/// What the host reports of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostEvent {
    /// It asks for the device.
    Request,
    /// The device has erred.
    Error,
}

/// What is done about it.
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
        // A reset of its bus would reset others under the guest's hands.
        (HostEvent::Error, OnError::Reset | OnError::Stop, _) => Answer::Stop,
    }
}

/// Hears what the host reports of the devices of one VM.
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
    /// The events of `functions`; `failed` is called when one cannot go on.
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

    /// Answers what is reported and not answered yet: a request that came while the main loop ended
    /// must not wait for the guest's next life.
    pub(crate) fn catch_up(&mut self) {
        (0..self.devices.len()).for_each(|index| self.hear(index));
    }

    /// Answers what the device at `index` has event.
    fn hear(&mut self, index: usize) {
        let device = self.devices.get_mut(index);
        let freed = device.and_then(|device| device.hear(self.policy, &self.failed));
        if freed == Some(SlotsFreed(true)) {
            self.devices.iter().for_each(|device| device.function.retry_placement());
        }
    }
}

impl MutEventSubscriber for DeviceEvents {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let index = usize::try_from(events.data()).unwrap_or(usize::MAX);
        self.hear(index);
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
    fn hear(&mut self, policy: OnError, failed: &dyn Fn(Error)) -> Option<SlotsFreed> {
        let is_signalled =
            |event: Option<&EventFd>| event.is_some_and(|event| event.read().is_ok());
        let function = self.function.function();
        let erred = is_signalled(function.error_event());
        // The host gets the device that it asks for, whatever the device did.
        let event = match is_signalled(function.request_event()) {
            true => Some(HostEvent::Request),
            false => erred.then_some(HostEvent::Error),
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
                self.report("is reset, and the guest's driver may begin anew");
                function.recover()
            }
            Answer::Detach if event == HostEvent::Request => {
                log::warn!("{address}: the host asks for the device; the guest goes on without it");
                function.detach()
            }
            Answer::Detach => {
                self.report("is taken from the guest, which goes on without it");
                function.detach()
            }
            Answer::Report => {
                self.report("stays with the guest; what it does is not to be trusted");
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
                "{address}: the device has told of an uncorrectable error (see the host's 'dmesg'); it {what}"
            );
        }
    }
}

#[cfg(test)]
mod tests;
