//! Access of the control socket and signals to the guest. [`Control`] exists from the start to the
//! end of the VMM.
//!
//! A running guest has a [`Life`]. Before the first life, and between two lives of a guest that
//! reboots, there is none, and every action fails.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use super::configuration::Configuration;
use crate::run::stop::{Outcome, Stop};
use crate::run::vcpu::Vcpus;

/// The controllable parts of a running guest.
pub(crate) struct Life {
    pub(crate) vcpus: Vcpus,
    pub(crate) stop: Arc<Stop>,
    /// An eventfd that presses its power button.
    pub(crate) power_button: EventFd,
    /// Reads the current counters.
    pub(crate) counters: Box<dyn Fn() -> Value + Send>,
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

/// Access to the guest in its current life.
#[derive(Default)]
pub(crate) struct Control {
    life: Mutex<Option<Life>>,
    configuration: Mutex<Option<Configuration>>,
}

impl Control {
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
    pub(crate) fn end(&self) {
        drop(lock(&self.life).take());
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
        self.on_life(|life| drop(life.power_button.write(1)))
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
