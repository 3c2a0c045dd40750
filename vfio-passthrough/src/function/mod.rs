//! A PCI function of the host, assigned to a guest: what the VMM's PCI bus calls.

mod build;
mod change;
mod effects;
mod events;
mod lifecycle;
mod reset;

use std::sync::{Arc, PoisonError};

use vmm_sys_util::eventfd::EventFd;

pub use crate::error::Error;
pub use effects::ConfigEffects;
pub use reset::{Reset, ResetPolicy};

use crate::address::{BarIndex, PciAddress};
use crate::bars::Bars;
use crate::bars::placement::Placement;
use crate::counters::FunctionTraps;
use crate::device::FunctionDevice;
use crate::irq::Interrupts;
use crate::pci::bar::{Bar, Space};
use crate::pci::config::ConfigSpace;
use crate::pci::msix::{MsixLayout, MsixPart};
use crate::pci::regs::Command;
use crate::sync::{Mutex, MutexGuard};
use events::HostEvents;

/// A PCI function that is assigned to a guest.
///
/// A VMM's PCI bus hands it the guest's config accesses, and the accesses to its BARs that no
/// memory slot takes. All methods may be called from any thread. Dropping it does what
/// [`shutdown`](Self::shutdown) does, with failures logged.
pub struct PassthroughFunction {
    device: Arc<FunctionDevice>,
    /// Bits of the command register that the guest does not change.
    host_command: Command,
    bars: Bars,
    msix: Option<MsixLayout>,
    reset: Reset,
    traps: Arc<FunctionTraps>,
    events: HostEvents,
    state: Mutex<State>,
}

/// What changes while the guest runs.
struct State {
    config: ConfigSpace,
    // Interrupts end before the memory slots, and both before the device is closed.
    interrupts: Interrupts,
    placement: Placement,
    /// The number of the last effects.
    sequence: u64,
    /// Something that the guest asked for failed: the next write does all of it again.
    needs_resync: bool,
    running: bool,
}

impl std::fmt::Debug for PassthroughFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PassthroughFunction")
            .field("address", &self.address())
            .field("bars", &self.bars())
            .field("reset", &self.reset)
            .field("detached", &self.is_detached())
            .finish_non_exhaustive()
    }
}

impl PassthroughFunction {
    /// The address on the host.
    pub fn address(&self) -> PciAddress {
        self.device.address
    }

    /// The BARs that the guest sees, and the ROM. A VMM places BARs as firmware does
    /// ([`place_bar`](Self::place_bar)). The ROM may be left to the guest.
    pub fn bars(&self) -> &[Bar] {
        self.bars.all()
    }

    /// The number of times that the guest trapped into this function.
    pub fn traps(&self) -> &FunctionTraps {
        &self.traps
    }

    /// How the function is reset.
    pub fn reset_kind(&self) -> Reset {
        self.reset
    }

    /// The BAR that decodes an address now, and the offset of the address in it.
    pub fn decode(&self, space: Space, address: u64) -> Option<(BarIndex, u64)> {
        self.bars.decode(&self.lock().config, space, address)
    }

    /// The guest reads config space, 1 to 4 bytes (PCIe 2.2.7.1: an access does not cross a dword).
    /// At most one read of the device, and none where all bits are emulated. What cannot be read is
    /// all-ones, as on a bus where nothing answers.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.traps.config_reads.increment();
        let mut state = self.lock();
        if !state.running {
            return data.fill(0xff);
        }
        data.fill(0);
        if state.config.reads_msi_pending(offset, data.len()) {
            let pending = state.interrupts.msi_pending(&state.config);
            state.config.set_msi_pending(pending);
        }
        let needs_device = state.config.needs_device(offset, data.len());
        let read = if needs_device { self.device.read_config(offset, data) } else { Ok(()) };
        match read {
            Ok(()) => state.config.overlay(offset, data),
            Err(error) => {
                data.fill(0xff);
                self.device.warn(&error);
            }
        }
    }

    /// The guest writes config space, 1 to 4 bytes. The VMM carries the effects out.
    pub fn config_write(&self, offset: u16, data: &[u8]) -> ConfigEffects {
        self.traps.config_writes.increment();
        let mut state = self.lock();
        if state.running {
            self.write_config(&mut state, offset, data);
        }
        self.effects(&mut state)
    }

    /// Places a BAR, as firmware does before an operating system runs: writes its register, and
    /// nothing is decoded yet.
    ///
    /// # Errors
    ///
    /// [`Error::Place`] where there is no such BAR, or it cannot be at that address: it must be a
    /// multiple of the BAR's size, and fit into 32 bits for a BAR of 32 bits, and into 16 bits for
    /// I/O ports. Nothing was written.
    pub fn place_bar(&self, index: BarIndex, address: u64) -> Result<ConfigEffects, Error> {
        let bar = self.bars().iter().find(|bar| bar.index == index);
        let bar = bar.filter(|bar| bar.fits(address)).ok_or(Error::Place {
            address: self.address(),
            bar: index,
            place: address,
        })?;
        let mut state = self.lock();
        let bytes = address.to_le_bytes();
        let words = bytes.chunks(4).take(bar.register_size().div_ceil(4));
        for (register, word) in (bar.register()..).step_by(4).zip(words) {
            self.write_config(&mut state, register, word);
        }
        Ok(self.effects(&mut state))
    }

    /// The guest reads from a BAR, 1 to 8 bytes, at a place that no memory slot covers. All-ones
    /// where the device does not answer.
    pub fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.traps.bar_reads.increment();
        if self.is_detached() {
            return data.fill(0xff);
        }
        match self.msix.and_then(|layout| Some((layout, layout.part_at(bar, offset)?))) {
            Some((_, MsixPart::Table(at))) => self.lock().interrupts.table().read(at, data),
            Some((layout, MsixPart::Pba(at))) => {
                let hardware =
                    |offset, data: &mut [u8]| self.bars.read(layout.pba_bar, offset, data);
                self.lock().interrupts.read_pba(at, data, hardware);
            }
            None => self.bars.read(bar, offset, data),
        }
    }

    /// The guest writes to a BAR at a place that no memory slot covers. `None`: the VMM has nothing
    /// to do because of it. A write of the MSI-X table tries again what failed before, which may
    /// free memory slots.
    pub fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) -> Option<ConfigEffects> {
        self.traps.bar_writes.increment();
        if self.is_detached() {
            return None;
        }
        match self.msix.and_then(|layout| layout.part_at(bar, offset)) {
            Some(MsixPart::Table(at)) => return self.write_table(at, data),
            // Read-only (PCI 6.8.2.10).
            Some(MsixPart::Pba(_)) => {}
            None => self.bars.write(bar, offset, data),
        }
        None
    }

    /// Retries the BARs whose memory slot was refused, since another function freed slots. Costs
    /// nothing where nothing was refused. A write of a BAR or of the command register of the
    /// function itself retries them too.
    pub fn retry_placement(&self) -> ConfigEffects {
        let mut state = self.lock();
        let State { placement, config, .. } = &mut *state;
        placement.place(config);
        self.effects(&mut state)
    }

    /// VFIO signals it when the host asks for the device, because its driver is unbound or it is
    /// unplugged, and again every 10 s while the host waits (`vfio_unregister_group_dev`). The
    /// answer is [`detach`](Self::detach): until then, whoever asked for it hangs. `None` where
    /// VFIO has no such event. The VMM polls it; it stays open as long as the function.
    pub fn request_event(&self) -> Option<&EventFd> {
        self.events.request.as_deref()
    }

    /// VFIO signals it when the device reported an uncorrectable error (PCIe AER); the host's
    /// kernel log has the details. What the device did since is not to be trusted. The VMM ends the
    /// guest, [recovers](Self::recover) the function, or [detaches](Self::detach) it. `None` where
    /// VFIO has no such event: on conventional PCI. The VMM polls it; it stays open as long as the
    /// function.
    pub fn error_event(&self) -> Option<&EventFd> {
        self.events.error.as_deref()
    }

    /// The device was detached: the function reads as all-ones, and what is written to it goes
    /// nowhere.
    pub fn is_detached(&self) -> bool {
        self.device.is_detached()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state as it was between two steps, which is a state it can
        // be in.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PassthroughFunction {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            log::error!("{error}");
        }
    }
}
