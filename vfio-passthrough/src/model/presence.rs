//! Devices that sleep, fall off the bus, or return from a reset as another device.

use std::io;

use vfio_model::AfterReset;

use super::opened::ADDRESS;
use super::pci::PciDevice;
use crate::pci::presence::Identity;

impl PciDevice {
    /// Sets the IDs that the host recorded at enumeration.
    pub fn recorded_as(mut self, recorded: Identity) -> Self {
        self.recorded = Some(recorded);
        self
    }

    /// Makes the device respond or not, as one that fell off the bus. Its config space and its BARs
    /// then read as all-ones, and writes have no effect. BARs that are mapped keep their contents.
    ///
    /// # Errors
    ///
    /// No error is expected.
    pub fn set_absent(&self, absent: bool) -> io::Result<()> {
        self.opened.system.set_absent(ADDRESS, absent)
    }

    /// Sets the state of the device after its next reset.
    ///
    /// # Errors
    ///
    /// No error is expected.
    pub fn after_reset(&self, state: AfterReset) -> io::Result<()> {
        self.opened.system.after_reset(ADDRESS, state)
    }

    /// Puts the device into a power state (0 for D0 to 3 for D3hot), as a program of the host does
    /// that writes to the device's config space in sysfs. If the state is stuck, later writes do
    /// not change it.
    ///
    /// # Errors
    ///
    /// No error is expected.
    pub fn set_power_state(&self, state: u8, is_stuck: bool) -> io::Result<()> {
        self.opened.system.set_power_state(ADDRESS, state, is_stuck)
    }
}
