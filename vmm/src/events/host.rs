//! What the host tells of assigned devices: that it asks for one, and that one has erred. What is done about it is
//! decided by [`decide`], and carried out by [`DeviceEvents`].

use std::sync::Arc;

use clap::ValueEnum;
use devices::{PciFunction as _, SlotsFreed};
use event_manager::{EventOps, Events, MutEventSubscriber};
use vfio_passthrough::function::Reset;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::listen;
use crate::Error;
use crate::stop::{Outcome, Stop};
use crate::vfio::GuestFunction;

/// A device that errs time and again is told of so often: a guest can bring errors about.
const MOST_REPORTS: u32 = 16;

/// What is done when a device has told of an uncorrectable error (PCIe AER).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnError {
    /// End the guest: what the device did since may be wrong
    #[default]
    Stop,
    /// Reset the device, and let the guest's driver begin anew; where it has no reset of its own, as stop
    Reset,
    /// Take the device from the guest, which goes on without it
    Detach,
    /// Say so, and go on
    Report,
}

/// What the host tells of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// It asks for it.
    Request,
    /// It has erred.
    Error,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Stop,
    Recover,
    GiveUp,
    Report,
}

fn decide(told: Told, policy: OnError, reset: Reset) -> Answer {
    match (told, policy, reset) {
        (Told::Request, ..) | (Told::Error, OnError::Detach, _) => Answer::GiveUp,
        (Told::Error, OnError::Report, _) => Answer::Report,
        (Told::Error, OnError::Reset, Reset::Function) => Answer::Recover,
        // A reset of its bus would reset others under the guest's hands.
        (Told::Error, OnError::Reset | OnError::Stop, _) => Answer::Stop,
    }
}

/// Hears what the host tells of the devices of one VM.
pub struct DeviceEvents {
    devices: Vec<Device>,
    policy: OnError,
    stop: Arc<Stop>,
}

struct Device {
    function: Arc<GuestFunction>,
    reports: u32,
}

impl DeviceEvents {
    /// Of `functions`; what cannot go on asks for a stop.
    pub fn new(functions: Vec<Arc<GuestFunction>>, policy: OnError, stop: &Arc<Stop>) -> Self {
        let device = |function| Device { function, reports: 0 };
        Self {
            devices: functions.into_iter().map(device).collect(),
            policy,
            stop: Arc::clone(stop),
        }
    }

    /// Answers what has been told and not been answered: what the host asked for while the main loop ended must not wait
    /// for the guest's next life.
    pub fn catch_up(&mut self) {
        (0..self.devices.len()).for_each(|index| self.hear(index));
    }

    /// Answers what the device at `index` has told.
    fn hear(&mut self, index: usize) {
        let device = self.devices.get_mut(index);
        let freed = device.and_then(|device| device.hear(self.policy, &self.stop));
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
    fn hear(&mut self, policy: OnError, stop: &Stop) -> Option<SlotsFreed> {
        let is_told = |event: Option<&EventFd>| event.is_some_and(|event| event.read().is_ok());
        let function = self.function.function();
        let erred = is_told(function.error_event());
        // What the host asks for it gets, whatever the device did.
        let told = match is_told(function.request_event()) {
            true => Some(Told::Request),
            false => erred.then_some(Told::Error),
        };
        let told = told.filter(|_| !function.is_detached())?;
        self.answer(told, policy, stop)
    }

    fn answer(&mut self, told: Told, policy: OnError, stop: &Stop) -> Option<SlotsFreed> {
        let function = Arc::clone(&self.function);
        let (function, address) = (function.function(), function.function().address());
        let answer = decide(told, policy, function.reset_kind());
        let (effects, result) = match answer {
            Answer::Stop => {
                stop.request(Outcome::Failed(Error::DeviceError { address }));
                return None;
            }
            Answer::Recover => {
                self.report("is reset, and the guest's driver may begin anew");
                function.recover()
            }
            Answer::GiveUp if told == Told::Request => {
                log::warn!("{address}: the host asks for the device; the guest goes on without it");
                function.detach()
            }
            Answer::GiveUp => {
                self.report("is taken from the guest, which goes on without it");
                function.detach()
            }
            Answer::Report => {
                self.report("stays with the guest; what it does is not to be trusted");
                return None;
            }
        };
        match result {
            Err(error) if answer == Answer::Recover => stop.request(Outcome::Failed(error.into())),
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
