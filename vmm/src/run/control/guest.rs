//! The guest as it can be asked: its [`Control`] is there from the start to the end of the VMM.
//!
//! A guest that runs is its [`Life`]: between two of a guest that reboots, and before the first,
//! there is none, and nothing can be asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use super::configuration::Configuration;
use crate::run::stop::{Outcome, Stop};
use crate::run::vcpu::Vcpus;

/// What a guest that runs can be asked for.
pub(crate) struct Life {
    /// Its CPUs.
    pub(crate) vcpus: Vcpus,
    /// Its end.
    pub(crate) stop: Arc<Stop>,
    /// An eventfd that presses its power button.
    pub(crate) power_button: EventFd,
    /// The counters as they are now.
    pub(crate) counters: Box<dyn Fn() -> Value + Send>,
}

/// How a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It does not run yet, or boots again.
    Starting,
    /// It runs.
    Running,
    /// Its CPUs wait. Its devices go on.
    Paused,
}

/// An action that cannot be taken: the guest does not run yet, or boots again just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotRunning;

/// The way to the guest, whichever life it is in.
#[derive(Default)]
pub(crate) struct Control {
    life: Mutex<Option<Life>>,
    configuration: Mutex<Option<Configuration>>,
}

impl Control {
    /// Tells what the guest has.
    pub(crate) fn configure(&self, configuration: Configuration) {
        *lock(&self.configuration) = Some(configuration);
    }

    /// What the guest has, if that is known yet.
    pub(crate) fn configuration(&self) -> Option<Configuration> {
        lock(&self.configuration).clone()
    }

    /// The guest runs from now on.
    pub(crate) fn begin(&self, life: Life) {
        *lock(&self.life) = Some(life);
    }

    /// The guest runs no more: nobody here uses anything of it when this returns, and its CPUs have
    /// stopped.
    pub(crate) fn end(&self) {
        drop(lock(&self.life).take());
    }

    /// How the guest is.
    pub(crate) fn state(&self) -> State {
        match lock(&self.life).as_ref() {
            None => State::Starting,
            Some(life) if life.vcpus.is_paused() => State::Paused,
            Some(_) => State::Running,
        }
    }

    /// Stops the CPUs; when this returns, none executes an instruction of the guest.
    pub(crate) fn pause(&self) -> Result<(), NotRunning> {
        self.on_life(|life| life.vcpus.pause())
    }

    /// Lets the CPUs go on.
    pub(crate) fn resume(&self) -> Result<(), NotRunning> {
        self.on_life(|life| life.vcpus.resume())
    }

    /// Presses the power button; what the guest does then is its affair. Presses while it has not
    /// heard of the last one are one.
    pub(crate) fn press_power_button(&self) -> Result<(), NotRunning> {
        self.on_life(|life| drop(life.power_button.write(1)))
    }

    /// Ends the VMM without asking the guest.
    pub(crate) fn shut_down(&self) -> Result<(), NotRunning> {
        self.on_life(|life| life.stop.insist(Outcome::Quit))
    }

    /// The counters.
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
