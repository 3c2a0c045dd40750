//! Interrupts between a device and the program: `VFIO_DEVICE_SET_IRQS`, and a device that fires.

use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::address::PciAddress;
use crate::describe::Description;
use crate::events::Event;
use crate::files::Fd;
use crate::irq_set::{self, Host, IrqSet};
use crate::irqs::{Active, Interrupts};
use crate::state::{State, System};
use crate::vectors::Vectors;

impl System {
    /// `VFIO_DEVICE_SET_IRQS` (`vfio_pci_ioctl_set_irqs`).
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `argsz`, index, vectors, data or flags are out of bounds; another index is
    ///   enabled; the index is not enabled, where the action needs it; or an fd is no eventfd.
    /// - `ENOTTY`: the index does not have the action.
    /// - `EBUSY`: INTx has an eventfd for unmask already.
    /// - `ERANGE`: MSI or MSI-X would be enabled with 0 vectors.
    /// - `EBADF`: an fd in the data is not open.
    /// - `ENOSPC`: the host has no vector for the device, or too few
    ///   ([`counts_vectors`](crate::Description::counts_vectors)). [`FewerVectors`](crate::FewerVectors): it
    ///   has fewer than MSI or MSI-X would be enabled with.
    pub fn set_irqs(&self, device: Fd, set: &IrqSet) -> io::Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        let address = state.device_of(device)?;
        let kernel = state.description.kernel;
        let vectors = state.entry(address)?.function.vectors(set.index, kernel);
        irq_set::validate(set, vectors, sys::VFIO_PCI_NUM_IRQS)?;
        let host = state.host_of(address);
        let device = state.devices.entry(address).or_default();
        device.irqs.set(set, host, &state.files)?;
        state.update_pin(address);
        state.replay_pending(address)
    }

    /// The interrupts of a device. A device that is not open has none.
    pub fn interrupts(&self, device: PciAddress) -> Interrupts {
        let state = self.state();
        let device = state.devices.get(&device);
        device.map(|device| device.irqs.interrupts()).unwrap_or_default()
    }

    /// A device fires a vector of MSI or MSI-X, whichever is enabled; nothing happens without
    /// either. The host masks a vector of MSI-X that has no eventfd: its pending bit is set, and it
    /// fires when it is bound.
    ///
    /// # Errors
    ///
    /// - `ENODEV`: the device does not exist.
    /// - The memory file's error, where the pending bit cannot be written.
    pub fn fire(&self, device: PciAddress, vector: u32) -> io::Result<()> {
        let mut state = self.state();
        let exists = vector < state.entry(device)?.function.msix;
        let Some(vectors) = state.vectors(device) else {
            return Ok(());
        };
        match vectors.triggers.get(&vector) {
            Some(event) => event.signal(),
            None if vectors.index == sys::VFIO_PCI_MSIX_IRQ_INDEX && exists => {
                state.hardware(device)?.set_pending(vector, true)?;
            }
            None => {}
        }
        Ok(())
    }

    /// A device asserts its interrupt pin or deasserts it.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the device does not exist.
    pub fn assert_pin(&self, device: PciAddress, asserted: bool) -> io::Result<()> {
        let mut state = self.state();
        state.hardware(device)?.assert_pin(asserted);
        state.update_pin(device);
        Ok(())
    }

    /// The kernel reads the eventfd that unmasks a device's pin, which the program may have
    /// signalled. A pin that is still asserted fires again (`vfio_pci_intx_unmask_handler`).
    pub fn poll_unmask(&self, device: PciAddress) {
        let mut state = self.state();
        if let Some(Active::Intx(intx)) = state.active(device) {
            intx.poll_unmask();
        }
        state.update_pin(device);
    }

    /// A device reports an uncorrectable error: the error interrupt is signalled
    /// (`vfio_pci_core_aer_err_detected`).
    pub fn report_error(&self, device: PciAddress) {
        let state = self.state();
        let error = state.devices.get(&device).and_then(|device| device.irqs.error.as_ref());
        error.into_iter().for_each(Event::signal);
    }
}

impl State {
    /// The host as a device sees it: it has all vectors that no other device has.
    fn host_of(&self, address: PciAddress) -> Host {
        let Description { kernel, host_vectors, counts_vectors: counts, .. } = self.description;
        let grows_msix = self.description.can_grow_msix();
        let others = self.devices.iter().filter(|(other, _)| **other != address);
        let taken = others.map(|(_, device)| device.irqs.allocated());
        let available = host_vectors.saturating_sub(taken.fold(0, u32::saturating_add));
        Host { kernel, grows_msix, available, counts }
    }

    fn active(&mut self, address: PciAddress) -> Option<&mut Active> {
        Some(&mut self.devices.get_mut(&address)?.irqs.active)
    }

    fn vectors(&self, address: PciAddress) -> Option<&Vectors> {
        match &self.devices.get(&address)?.irqs.active {
            Active::Vectors(vectors) => Some(vectors),
            _ => None,
        }
    }

    /// Fires the pin where it is asserted and neither masked nor disabled (`vfio_intx_handler`).
    pub fn update_pin(&mut self, address: PciAddress) {
        let is_asserted = self.hardware(address).is_ok_and(|hardware| hardware.asserts_intx());
        match self.active(address) {
            Some(Active::Intx(intx)) if is_asserted => intx.fire(),
            _ => {}
        }
    }

    /// Fires the pending vectors that are bound. Without MSI-X no vector stays pending.
    fn replay_pending(&mut self, address: PciAddress) -> io::Result<()> {
        let pending = self.hardware(address)?.pending.clone();
        for vector in pending {
            match self.vectors(address).map(|vectors| vectors.triggers.get(&vector)) {
                Some(Some(event)) => event.signal(),
                Some(None) => continue,
                None => {}
            }
            self.hardware(address)?.set_pending(vector, false)?;
        }
        Ok(())
    }
}
