//! What can be asked of a VM while it runs: by signals, and by the socket of `--control`.
//!
//! A [`Control`] is there from the start to the end of the VMM. A guest that runs is its [`Life`]: between two of
//! a guest that reboots, and before the first, there is none, and nothing can be asked.

mod client;
mod http;
mod server;
mod table;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use crate::Args;
use crate::stop::{Outcome, Stop};
use crate::vcpu::Vcpus;

pub use client::{Error as ClientError, stats};
pub use server::Server;

/// What a guest that runs can be asked for.
pub struct Life {
    /// Its CPUs.
    pub vcpus: Vcpus,
    /// Its end.
    pub stop: Arc<Stop>,
    /// An eventfd that presses its power button.
    pub power_button: EventFd,
    /// The counters as they are now.
    pub counters: Box<dyn Fn() -> Value + Send>,
}

/// What a guest has; the same for all its lives.
#[derive(Clone, Debug, Serialize)]
pub struct Configuration {
    cpus: u8,
    memory_bytes: u64,
    kernel: String,
    /// In the order of the command line.
    devices: Vec<DeviceInfo>,
}

/// An assigned device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceInfo {
    /// In the host.
    pub address: String,
    /// In the guest.
    pub guest_address: String,
    /// Its BARs.
    pub bars: Vec<BarInfo>,
}

/// A BAR of an assigned device.
#[derive(Clone, Debug, Serialize)]
pub struct BarInfo {
    /// 0 to 5; 6 is the ROM.
    pub index: u8,
    /// In bytes.
    pub size: u64,
    /// `io`, `memory32`, `memory64` or `rom`.
    pub kind: &'static str,
}

impl Configuration {
    /// What `args` ask for, with these devices.
    pub fn new(args: &Args, devices: Vec<DeviceInfo>) -> Self {
        Self {
            cpus: args.cpus,
            memory_bytes: args.memory.bytes(),
            kernel: args.kernel.to_string(),
            devices,
        }
    }
}

/// How a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does not run yet, or boots again.
    Starting,
    /// It runs.
    Running,
    /// Its CPUs wait. Its devices go on.
    Paused,
}

/// An action that cannot be taken: the guest does not run yet, or boots again just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRunning;

/// The way to the guest, whichever life it is in.
#[derive(Default)]
pub struct Control {
    life: Mutex<Option<Life>>,
    configuration: Mutex<Option<Configuration>>,
}

impl Control {
    /// Tells what the guest has.
    pub fn configure(&self, configuration: Configuration) {
        *lock(&self.configuration) = Some(configuration);
    }

    /// What the guest has, if that is known yet.
    pub fn configuration(&self) -> Option<Configuration> {
        lock(&self.configuration).clone()
    }

    /// The guest runs from now on.
    pub fn begin(&self, life: Life) {
        *lock(&self.life) = Some(life);
    }

    /// The guest runs no more: nobody here uses anything of it when this returns, and its CPUs have stopped.
    pub fn end(&self) {
        drop(lock(&self.life).take());
    }

    /// How the guest is.
    pub fn state(&self) -> State {
        match lock(&self.life).as_ref() {
            None => State::Starting,
            Some(life) if life.vcpus.is_paused() => State::Paused,
            Some(_) => State::Running,
        }
    }

    /// Stops the CPUs; when this returns, none executes an instruction of the guest.
    pub fn pause(&self) -> Result<(), NotRunning> {
        self.on_life(|life| life.vcpus.pause())
    }

    /// Lets the CPUs go on.
    pub fn resume(&self) -> Result<(), NotRunning> {
        self.on_life(|life| life.vcpus.resume())
    }

    /// Presses the power button; what the guest does then is its affair. Presses while it has not heard of the
    /// last one are one.
    pub fn press_power_button(&self) -> Result<(), NotRunning> {
        self.on_life(|life| drop(life.power_button.write(1)))
    }

    /// Ends the VMM without asking the guest.
    pub fn shut_down(&self) -> Result<(), NotRunning> {
        self.on_life(|life| life.stop.insist(Outcome::Quit))
    }

    /// The counters.
    pub fn counters(&self) -> Result<Value, NotRunning> {
        self.on_life(|life| (life.counters)())
    }

    fn on_life<T>(&self, action: impl FnOnce(&Life) -> T) -> Result<T, NotRunning> {
        lock(&self.life).as_ref().map(action).ok_or(NotRunning)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
