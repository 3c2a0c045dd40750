//! Devices that do not respond, or that are not as a reset should leave them.

use std::io;

use crate::address::PciAddress;
use crate::describe::AfterReset;
use crate::state::System;

impl System {
    /// Makes a device respond or not, as one that fell off the bus. Its config space and its memory
    /// then read as all-ones, and writes have no effect. A part of a region that is mapped into the
    /// process keeps its contents.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the device does not exist.
    pub fn set_absent(&self, device: PciAddress, absent: bool) -> io::Result<()> {
        self.state().hardware(device)?.absent = absent;
        Ok(())
    }

    /// Sets the state of a device after its next reset.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the device does not exist.
    pub fn after_reset(&self, device: PciAddress, state: AfterReset) -> io::Result<()> {
        self.state().hardware(device)?.after_reset = Some(state);
        Ok(())
    }

    /// Puts a device into a power state (0 for D0 to 3 for D3hot), as a program of the host does
    /// that writes to the device's config space in sysfs. If the state is stuck, later writes do
    /// not change it.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the device does not exist.
    pub fn set_power_state(&self, device: PciAddress, state: u8, is_stuck: bool) -> io::Result<()> {
        let mut locked = self.state();
        let hardware = locked.hardware(device)?;
        hardware.set_power_state(state);
        hardware.power_is_stuck = is_stuck;
        Ok(())
    }
}
