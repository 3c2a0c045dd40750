//! What a VMM's PCI bus calls: accesses of the guest, and what the VMM asks of a function.

use vmm_sys_util::eventfd::EventFd;

use super::effects::ConfigEffects;
use super::reset::Reset;
use super::state::{PassthroughFunction, State};
use crate::address::{BarIndex, PciAddress};
use crate::counters::FunctionTraps;
use crate::dma::DmaSpace;
use crate::error::Error;
use crate::pci::bar::{Bar, Space};
use crate::pci::msix::MsixPart;
use crate::presence::is_unplugged;

impl PassthroughFunction {
    /// The function's address on the host.
    pub fn address(&self) -> PciAddress {
        self.device.address
    }

    /// The BARs in ascending order, then the ROM. The VMM places the BARs as firmware does
    /// ([`place_bar`](Self::place_bar)). The guest can place the ROM.
    pub fn bars(&self) -> &[Bar] {
        self.bars.all()
    }

    /// The number of interrupt vectors that the guest can enable. Each vector that it uses takes an
    /// eventfd, and so one of the files that the process may open.
    pub fn vectors(&self) -> u16 {
        let state = self.lock();
        let msi = state.config.msi().map_or(0, |layout| layout.vectors());
        let msix = self.msix.map_or(0, |layout| layout.vectors);
        msix.max(msi).max(u16::from(state.config.pin() != 0))
    }

    /// Counters of the guest accesses that trapped into this function.
    pub fn traps(&self) -> &FunctionTraps {
        &self.traps
    }

    /// How [`reset`](Self::reset) resets the function.
    pub fn reset_kind(&self) -> Reset {
        self.reset
    }

    /// The BAR that decodes `address` now, and the offset of the address in the BAR. `None` if no
    /// BAR of this function decodes it.
    pub fn decode(&self, space: Space, address: u64) -> Option<(BarIndex, u64)> {
        self.bars.decode(&self.lock().config, space, address)
    }

    /// The address in the register of a BAR, whether or not the BAR decodes it. `None` if the BAR has
    /// no address yet, is being sized, or does not exist.
    pub fn bar_address(&self, index: BarIndex) -> Option<u64> {
        let bar = self.bars().iter().find(|bar| bar.index == index)?;
        self.lock().config.placed(bar)
    }

    /// Handles a guest's read of config space, of 1 to 4 bytes (PCIe 2.2.7.1: an access does not
    /// cross a dword). It reads the device at most once, and not if all bits are emulated. A device
    /// that answers all-ones is asked for its class code too, to see whether it still responds.
    ///
    /// A failed read gives all-ones, as on a bus where no device answers. So does a function that
    /// is shut down or detached, and a device that does not respond. The latter is asked again at
    /// each access.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.traps.config_reads.increment();
        let mut state = self.lock();
        if !state.running || self.stays_absent(&mut state) {
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
            Ok(()) if needs_device && self.has_gone(&mut state, data) => data.fill(0xff),
            Ok(()) => state.config.overlay(offset, data),
            Err(error) => {
                data.fill(0xff);
                self.device.warn(&error);
                if is_unplugged(&error) {
                    self.has_gone(&mut state, data);
                }
            }
        }
    }

    /// Handles a guest's write of config space, of 1 to 4 bytes. The VMM carries out the effects. A
    /// failed step is logged, and the next write repeats it.
    pub fn config_write(&self, offset: u16, data: &[u8]) -> ConfigEffects {
        self.traps.config_writes.increment();
        let mut state = self.lock();
        if state.running {
            self.stays_absent(&mut state);
            self.write_config(&mut state, offset, data);
        }
        self.effects(&mut state)
    }

    /// Writes the register of a BAR, as firmware does before an operating system runs. The BAR
    /// decodes its address once the guest enables decoding in the command register.
    ///
    /// # Errors
    ///
    /// [`Error::Place`] if the function has no such BAR, or the BAR does not fit at the address.
    /// The address must be a multiple of the BAR's size. The BAR must fit below 2^16 for I/O ports,
    /// 2^32 for a 32-bit BAR, and 2^52 for a 64-bit BAR. Nothing was written.
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

    /// Handles a guest's read of a BAR, of 1 to 8 bytes, at an offset that no memory slot covers. A
    /// failed read gives all-ones, and so does a device that does not respond.
    pub fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.traps.bar_reads.increment();
        if self.is_detached() || self.device.is_absent() {
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

    /// Handles a guest's write to a BAR, of 1 to 8 bytes, at an offset that no memory slot covers.
    /// It returns effects only if the VMM has something to do: a write of the MSI-X table retries
    /// steps that failed before, and this may free memory slots.
    pub fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) -> Option<ConfigEffects> {
        self.traps.bar_writes.increment();
        if self.is_detached() {
            return None;
        }
        match self.msix.and_then(|layout| layout.part_at(bar, offset)) {
            Some(MsixPart::Table(at)) => return self.write_table(at, data),
            // The PBA is read-only (PCI 3.0, 6.8.2.10).
            Some(MsixPart::Pba(_)) => {}
            None => self.bars.write(bar, offset, data),
        }
        None
    }

    /// Retries BARs whose memory slot was refused because of an overlap. Call it after another
    /// function freed memory slots ([`ConfigEffects::slots_freed`]). It makes no call to the kernel
    /// if no slot was refused. A guest's write of this function's BARs or command register retries
    /// them too.
    pub fn retry_placement(&self) -> ConfigEffects {
        let mut state = self.lock();
        let State { placement, config, .. } = &mut *state;
        placement.place(config);
        self.effects(&mut state)
    }

    /// Whether the function is of conventional PCI: it has no PCI Express capability. Such a
    /// function may do DMA to its own BARs: see [`set_peers`](Self::set_peers).
    pub fn is_conventional(&self) -> bool {
        self.lock().config.is_conventional()
    }

    /// Maps the BARs for DMA in `peers`, or unmaps them. The VMM calls it when a second device of
    /// the guest comes while the guest runs, or leaves. Like
    /// [`VmmServices::p2p`](crate::VmmServices::p2p), mapping is best effort.
    ///
    /// A [conventional](Self::is_conventional) function needs it even if it is the guest's only
    /// one: controllers such as the LSI 53C895A keep their programs in a BAR, and fetch them by its
    /// bus address. Give [`DmaSpace::without_warnings`] then, because most do not.
    ///
    /// # Errors
    ///
    /// [`Error::P2p`]: a BAR could not be unmapped. The other BARs are unmapped too.
    pub fn set_peers(&self, peers: Option<DmaSpace>) -> Result<(), Error> {
        let mut state = self.lock();
        let State { placement, config, .. } = &mut *state;
        placement.set_peers(peers, config)
    }

    /// The eventfd that VFIO signals when the host asks for the device: its driver is being
    /// unbound, or it is being unplugged. VFIO repeats it every 10 s (vfio_unregister_group_dev).
    /// The VMM polls it, and calls [`detach`](Self::detach); until then the unbind or unplug
    /// blocks. It is `None` if VFIO has no such event for the device (`VFIO_PCI_REQ_IRQ_INDEX`). It
    /// stays open as long as this value lives.
    pub fn request_event(&self) -> Option<&EventFd> {
        self.events.request.as_deref()
    }

    /// The eventfd that VFIO signals when the device reported an uncorrectable error (PCIe 6.2,
    /// AER). The host's kernel log has the details. Data that the device wrote may be corrupt. The
    /// VMM polls it, and ends the guest, [recovers](Self::recover) the function or
    /// [detaches](Self::detach) it. It is `None` if VFIO has no such event for the device
    /// (`VFIO_PCI_ERR_IRQ_INDEX`: conventional PCI). It stays open as long as this value lives.
    pub fn error_event(&self) -> Option<&EventFd> {
        self.events.error.as_deref()
    }

    /// Whether the function was detached. Its reads then give all-ones, and its writes are ignored.
    pub fn is_detached(&self) -> bool {
        self.device.is_detached()
    }
}

impl Drop for PassthroughFunction {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            log::error!("{error}");
        }
    }
}
