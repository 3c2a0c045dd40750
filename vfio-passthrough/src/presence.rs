//! Looks whether a device responds, as itself and awake: at its assignment, after each reset, and
//! when a read gives all-ones.

use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use crate::device::{ConventionalConfig, FunctionDevice};
use crate::error::Error;
use crate::pci::presence::{Fault, Header, PowerState, header, is_absent, power_control};
use crate::pci::regs::REVISION;

/// The time for a transition to D3hot or from it (PM 1.2, 5.6.1; PCIe 5.9). From D2 it is 200 us.
const TRANSITION: Duration = Duration::from_millis(10);

/// The wait for a device that does not respond: 100 x 10 ms. A device may take one second after a
/// reset (PCIe 6.6.1).
const LOOKS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Whether an access failed because the kernel knows that the device is gone
/// (pci_dev_is_disconnected).
pub(crate) fn is_unplugged(error: &Error) -> bool {
    matches!(error, Error::Region { source, .. } if source.raw_os_error() == Some(libc::ENODEV))
}

/// Writes that wake a function. The second one is for a kernel that does not know that the function
/// sleeps, because another program put it to sleep. The kernel then ignores a write of D0
/// (pci_set_power_state), but not one of D3hot.
const WAKES: [&[u8]; 2] = [&[0], &[3, 0]];

impl FunctionDevice {
    /// Waits until the device responds, checks that it is the device that it was, and wakes it.
    /// `when` is for the error. Returns the first 256 bytes of config space.
    pub fn wait_until_usable(&self, when: &'static str) -> Result<ConventionalConfig, Error> {
        let result = self.wait_until_awake(when);
        self.absent.store(result.is_err(), Ordering::Release);
        result
    }

    fn wait_until_awake(&self, when: &'static str) -> Result<ConventionalConfig, Error> {
        let config = self.wait_for_answer(when)?;
        match self.wake(&config, when)? {
            true => self.wait_for_answer(when),
            false => Ok(config),
        }
    }

    fn wait_for_answer(&self, when: &'static str) -> Result<ConventionalConfig, Error> {
        // A device that was absent before gets no second.
        let mut looks = if self.is_absent() { 0 } else { LOOKS };
        loop {
            let config = self.conventional_config()?;
            match header(&config) {
                Ok(found) => return self.check_header(found, when).map(|()| config),
                Err(fault) if looks == 0 => return Err(self.unfit(when, fault)),
                Err(_) => sleep(PAUSE),
            }
            looks = looks.saturating_sub(1);
        }
    }

    /// Compares the header with that of the last look, or with what the host recorded.
    fn check_header(&self, found: Header, when: &'static str) -> Result<(), Error> {
        let recorded = self.device.recorded().unwrap_or(found.identity);
        let expected = self.header.get_or_init(|| Header { identity: recorded, ..found });
        match found == *expected {
            true => Ok(()),
            false => Err(self.unfit(when, Fault::Other { expected: *expected, found })),
        }
    }

    /// Brings a function to D0. Returns whether it was in another state.
    fn wake(&self, config: &ConventionalConfig, when: &'static str) -> Result<bool, Error> {
        let Some((offset, control)) = power_control(config) else { return Ok(false) };
        let mut state = PowerState::of(control);
        if state == PowerState::D0 {
            return Ok(false);
        }
        log::debug!("{}: {when} the device is in {state}; waking it", self.address);
        for states in WAKES {
            for state in states {
                self.write_config(offset, &[*state])?;
                sleep(TRANSITION);
            }
            let mut control = [0; 2];
            self.read_config(offset, &mut control)?;
            state = PowerState::of(u16::from_le_bytes(control));
            if state == PowerState::D0 {
                return Ok(true);
            }
        }
        Err(self.unfit(when, Fault::Asleep(state)))
    }

    /// Looks whether the device has gone. An errno other than `ENODEV` does not decide: the kernel
    /// returns this one for a device that was unplugged.
    pub fn has_gone(&self) -> bool {
        self.class().map_or_else(|error| is_unplugged(&error), is_absent)
    }

    /// Looks whether a device that was absent is back. Another device does not count.
    pub fn is_back(&self) -> bool {
        let known = self.header.get().map(|header| header.class);
        self.class().is_ok_and(|class| Some(class) == known)
    }

    /// The dword of class code and revision ID, which vfio-pci reads from the device.
    fn class(&self) -> Result<u32, Error> {
        let mut class = [0; 4];
        self.read_config(REVISION, &mut class).map(|()| u32::from_le_bytes(class))
    }

    /// Whether the device did not respond at the last look.
    pub fn is_absent(&self) -> bool {
        self.absent.load(Ordering::Acquire)
    }

    /// Notes whether the device responds.
    pub fn set_absent(&self, absent: bool) {
        self.absent.store(absent, Ordering::Release);
    }

    /// The error of a device that cannot be used.
    pub fn unfit(&self, when: &'static str, fault: Fault) -> Error {
        Error::Unfit { address: self.address, when, fault }
    }
}
