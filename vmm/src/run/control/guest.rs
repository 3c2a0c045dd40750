//! Access of the control socket and signals to the guest. [`Control`] exists from the start to the
//! end of the VMM.
//!
//! A running guest has a [`Life`]. Before the first life, and between two lives of a guest that
//! reboots, there is none, and every action fails.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{self, EfdFlags};
use serde::Serialize;
use serde_json::Value;

use super::configuration::{Configuration, DeviceInfo};
use super::messages::{AddRequest, RemoveRequest};
use crate::error::Error;
use crate::guest::machine::PowerButton;
use crate::passthrough::hot_plug::HotPlug;
use crate::run::stop::{Outcome, Stop};
use crate::run::vcpu::Vcpus;

/// The controllable parts of a running guest.
pub(crate) struct Life {
    pub(crate) vcpus: Vcpus,
    pub(crate) stop: Arc<Stop>,
    /// Presses its power button.
    pub(crate) power_button: PowerButton,
    /// Reads the current counters.
    pub(crate) counters: Box<dyn Fn() -> Value + Send>,
    /// Adds and removes devices; `None` without a control socket, or if the machine has no hot-plug.
    pub(crate) hot_plug: Option<HotPlug>,
}

/// The state of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// The guest does not run yet, or reboots.
    Starting,
    /// The guest runs.
    Running,
    /// The vCPUs are paused; the devices continue.
    Paused,
}

/// The action failed, because the guest does not run yet or reboots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotRunning;

/// A request that was not carried out.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The request is not valid.
    Body(String),
    /// The guest cannot do it.
    Guest(Error),
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self::Body(why)
    }
}

/// Access to the guest in its current life.
pub(crate) struct Control {
    life: Mutex<Option<Life>>,
    configuration: Mutex<Option<Configuration>>,
    ejected: Arc<eventfd::EventFd>,
}

impl Control {
    /// There is no life yet.
    pub(crate) fn new() -> Result<Self, Error> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let ejected = eventfd::EventFd::from_flags(flags);
        let ejected = ejected.map_err(Error::system("eventfd"))?;
        let (life, configuration) = Default::default();
        Ok(Self { life, configuration, ejected: Arc::new(ejected) })
    }

    /// An eventfd that is raised when the guest ejects a device.
    pub(crate) fn ejected(&self) -> &Arc<eventfd::EventFd> {
        &self.ejected
    }

    /// Gives ejected devices back to the host.
    pub(crate) fn finish_ejections(&self) {
        let _ = self.ejected.read();
        // A life that ends meanwhile gives them back itself.
        let _ = self.on_hot_plug(|hot_plug| {
            hot_plug.finish();
            Ok(())
        });
    }

    /// When to remind the guest of its slots, if it does not act before.
    pub(crate) fn reminder(&self) -> Option<Duration> {
        let life = lock(&self.life);
        let hot_plug = life.as_ref().and_then(|life| life.hot_plug.as_ref());
        hot_plug.and_then(|hot_plug| hot_plug.slots.reminder())
    }

    /// Reminds the guest of a change of its slots.
    pub(crate) fn remind(&self) {
        let life = lock(&self.life);
        let hot_plug = life.as_ref().and_then(|life| life.hot_plug.as_ref());
        hot_plug.iter().for_each(|hot_plug| hot_plug.slots.remind());
    }

    /// Adds the devices of a request to the guest, all or none.
    pub(crate) fn add(
        &self,
        body: &[u8],
        files: Vec<File>,
    ) -> Result<Result<Vec<DeviceInfo>, Refused>, NotRunning> {
        self.on_hot_plug(|hot_plug| {
            let addition = AddRequest::parse(body)?.take(files)?;
            let added = hot_plug.add(addition).map_err(Refused::Guest)?;
            Ok(added.iter().map(DeviceInfo::of).collect())
        })
    }

    /// Asks the guest for the device of a request, or takes it.
    pub(crate) fn remove(&self, body: &[u8]) -> Result<Result<(), Refused>, NotRunning> {
        self.on_hot_plug(|hot_plug| {
            let (address, force) = RemoveRequest::parse(body)?.device()?;
            hot_plug.remove(address, force).map_err(Refused::Guest)
        })
    }

    /// The action, and then the new list of devices.
    fn on_hot_plug<T>(
        &self,
        action: impl FnOnce(&HotPlug) -> Result<T, Refused>,
    ) -> Result<Result<T, Refused>, NotRunning> {
        let life = lock(&self.life);
        let Some(hot_plug) = &life.as_ref().ok_or(NotRunning)?.hot_plug else {
            return Ok(Err(Refused::Guest(Error::NoHotPlug)));
        };
        let result = action(hot_plug);
        self.list(hot_plug);
        Ok(result)
    }

    /// Lists the devices of now.
    fn list(&self, hot_plug: &HotPlug) {
        if let Some(configuration) = lock(&self.configuration).as_mut() {
            configuration.iommu = hot_plug.assigned.iommu();
            configuration.devices =
                hot_plug.functions.iter().map(|own| DeviceInfo::of(&own)).collect();
        }
    }

    /// Sets the guest's configuration.
    pub(crate) fn configure(&self, configuration: Configuration) {
        *lock(&self.configuration) = Some(configuration);
    }

    /// The guest's configuration, if it is known yet.
    pub(crate) fn configuration(&self) -> Option<Configuration> {
        lock(&self.configuration).clone()
    }

    /// Starts a life of the guest.
    pub(crate) fn begin(&self, life: Life) {
        *lock(&self.life) = Some(life);
    }

    /// Ends the life: when this returns, no caller uses the guest, and its vCPUs have stopped.
    /// Devices that the guest ejected, or was asked for, do not come back with its next life.
    pub(crate) fn end(&self) {
        let life = lock(&self.life).take();
        if let Some(hot_plug) = life.and_then(|life| life.hot_plug) {
            hot_plug.end();
            self.list(&hot_plug);
        }
    }

    /// The guest's state.
    pub(crate) fn state(&self) -> State {
        match lock(&self.life).as_ref() {
            None => State::Starting,
            Some(life) if life.vcpus.is_paused() => State::Paused,
            Some(_) => State::Running,
        }
    }

    /// Pauses the vCPUs; when this returns, none executes guest instructions.
    pub(crate) fn pause(&self) -> Result<(), NotRunning> {
        self.on_life(|life| life.vcpus.pause())
    }

    /// Resumes the vCPUs.
    pub(crate) fn resume(&self) -> Result<(), NotRunning> {
        self.on_life(|life| life.vcpus.resume())
    }

    /// Presses the power button; the guest decides how to react. Presses merge until the guest
    /// handles the interrupt.
    pub(crate) fn press_power_button(&self) -> Result<(), NotRunning> {
        self.on_life(|life| (life.power_button)())
    }

    /// Ends the VMM without asking the guest.
    pub(crate) fn shut_down(&self) -> Result<(), NotRunning> {
        self.on_life(|life| life.stop.insist(Outcome::Quit))
    }

    /// The current counters.
    pub(crate) fn counters(&self) -> Result<Value, NotRunning> {
        self.on_life(|life| (life.counters)())
    }

    fn on_life<T>(&self, action: impl FnOnce(&Life) -> T) -> Result<T, NotRunning> {
        lock(&self.life).as_ref().map(action).ok_or(NotRunning)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
