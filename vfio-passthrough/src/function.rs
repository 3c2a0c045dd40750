//! A PCI function of the host, assigned to a guest: what the VMM's PCI bus calls.

mod effects;
mod error;
mod host;
mod interrupts;
mod reset;
mod windows;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

pub use effects::ConfigEffects;
pub use error::Error;
pub(crate) use reset::{BUS_RESET, choose};
pub use reset::{Reset, ResetPolicy};

use vmm_sys_util::eventfd::EventFd;

use crate::address::{BarIndex, PciAddress};
use crate::backend::{Device, RegionFlags, RegionInfo};
use crate::counters::FunctionTraps;
use crate::dma::DmaSpace;
use crate::host::MemorySlots;
use crate::irq::event::Event;
use crate::irq::{self, Interrupts};
use crate::pci::bar::Bar;
use crate::pci::config::{ConfigSpace, Touched, Written};
use crate::pci::msix::{MsixLayout, MsixPart, MsixState};
use crate::pci::regs::{COMMAND, Command};
use crate::sync::{Mutex, MutexGuard};
use crate::window::Window;

/// A warning a function may log about failed accesses before it falls silent; a guest must not fill the
/// host's log.
const ACCESS_WARNINGS: u32 = 16;

/// The most bytes that a ROM has (PCI 3.0, 6.2.5.2).
const MAX_ROM: u64 = 16 << 20;

/// A PCI function that is assigned to a guest.
///
/// A VMM's PCI bus hands it the guest's config accesses, and the accesses to its BARs that no memory slot
/// takes. All methods may be called from any thread. Dropping it does what [`shutdown`](Self::shutdown) does,
/// with failures logged.
pub struct PassthroughFunction {
    pub(crate) address: PciAddress,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) config_region: RegionInfo,
    /// The regions of the BARs, by their index.
    /// The host hears of the device's errors where this says so, whatever the guest says: without SERR#, or its like in PCI
    /// Express, an error is not told (PCIe 6.2.6).
    pub(crate) host_command: Command,
    pub(crate) regions: Vec<RegionInfo>,
    pub(crate) bars: Vec<Bar>,
    pub(crate) msix: Option<MsixLayout>,
    pub(crate) slots: Arc<dyn MemorySlots>,
    pub(crate) p2p: Option<DmaSpace>,
    /// That BARs cannot be mapped for other devices was said.
    pub(crate) p2p_refused: AtomicBool,
    /// What the ROM holds, once the guest has read of it.
    pub(crate) rom: OnceLock<Vec<u8>>,
    pub(crate) reset: Reset,
    pub(crate) traps: FunctionTraps,
    pub(crate) warnings: AtomicU32,
    /// Signalled when the host asks for the device, and when the device tells of an error.
    pub(crate) request: Option<Arc<EventFd>>,
    pub(crate) error: Option<Arc<EventFd>>,
    /// The device was given up.
    pub(crate) lost: AtomicBool,
    pub(crate) state: Mutex<State>,
}

/// What changes while the guest runs.
pub(crate) struct State {
    pub config: ConfigSpace,
    pub msix: MsixState,
    // Interrupts end before the memory slots go, and both before the device is closed.
    pub interrupts: Interrupts,
    pub windows: Vec<Window>,
    /// What the host tells, not the guest.
    pub events: Vec<Event>,
    /// The number of the last effects.
    pub sequence: u64,
    /// A memory slot was removed since then: another function's BAR may fit where it was.
    pub freed: bool,
    /// Something that the guest asked for failed: the next write does all of it again.
    pub unsettled: bool,
    pub running: bool,
}

impl PassthroughFunction {
    /// The address on the host.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// The BARs that the guest sees, and the ROM. A VMM places BARs as firmware does: by writing their
    /// registers. The ROM may be left to the guest.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// How often the guest trapped into this function.
    pub fn traps(&self) -> &FunctionTraps {
        &self.traps
    }

    /// The guest reads config space, 1 to 4 bytes (PCIe 2.2.7.1: an access does not cross a dword). At most
    /// one read of the device, and none where all bits are emulated. What cannot be read is all-ones, as on a
    /// bus where nothing answers.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.traps.config_reads.increment();
        self.read_config(&mut self.lock(), offset, data);
    }

    fn read_config(&self, state: &mut State, offset: u16, data: &mut [u8]) {
        if !state.running {
            return data.fill(0xff);
        }
        data.fill(0);
        if state.config.reads_msi_pending(offset, data.len()) {
            let pending = state.msi_pending();
            state.config.set_msi_pending(pending);
        }
        if state.config.needs_device(offset, data.len()) {
            let result = self.device.read(&self.config_region, u64::from(offset), data);
            if let Err(source) = result {
                data.fill(0xff);
                return self.warn(&self.region_error("read", &self.config_region, source));
            }
        }
        state.config.overlay(offset, data);
    }

    /// The guest writes config space, 1 to 4 bytes. What the VMM has to do because of it is returned.
    pub fn config_write(&self, offset: u16, data: &[u8]) -> ConfigEffects {
        self.traps.config_writes.increment();
        let mut state = self.lock();
        if state.running {
            let written = state.config.write(offset, data);
            self.settle(&mut state, written);
        }
        self.effects(&mut state)
    }

    /// The guest reads from a BAR, 1 to 8 bytes, at a place that no memory slot covers. All-ones where the
    /// device does not answer.
    pub fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.traps.bar_reads.increment();
        if self.is_lost() {
            return data.fill(0xff);
        }
        match self.msix_part(bar, offset) {
            Some(MsixPart::Table(at)) => self.lock().msix.read(at, data),
            Some(MsixPart::Pba(at)) => self.read_pba(at, data),
            None => self.region_read(bar, offset, data),
        }
    }

    /// The guest writes to a BAR at a place that no memory slot covers. `None`: the VMM has nothing to do because of
    /// it. A write of the MSI-X table tries again what failed before, which may free memory slots.
    pub fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) -> Option<ConfigEffects> {
        self.traps.bar_writes.increment();
        if self.is_lost() {
            return None;
        }
        match self.msix_part(bar, offset) {
            Some(MsixPart::Table(at)) => return self.table_write(at, data),
            // Read-only (PCI 6.8.2.10).
            Some(MsixPart::Pba(_)) => {}
            None => self.region_write(bar, offset, data),
        }
        None
    }

    fn table_write(&self, at: u64, data: &[u8]) -> Option<ConfigEffects> {
        let mut state = self.lock();
        let resyncs = state.unsettled;
        if state.msix.write(at, data) || resyncs {
            let touched = Touched::MSIX;
            let written = Written { touched, ..Written::default() };
            self.settle(&mut state, written);
        }
        resyncs.then(|| self.effects(&mut state))
    }

    /// How the function is reset.
    pub fn reset_kind(&self) -> Reset {
        self.reset
    }

    /// Brings the function back to how it is after power-on: for a reset of the guest, whose CPUs must not
    /// run meanwhile where the reset is that of a whole bus ([`Reset::Bus`]): functions that share it are
    /// reset too.
    ///
    /// # Errors
    ///
    /// The first failure; what comes after it is done all the same, and has effects.
    pub fn reset(&self) -> (ConfigEffects, Result<(), Error>) {
        let mut state = self.lock();
        let result = match self.is_lost() {
            true => Ok(()),
            false => self.reset_locked(&mut state),
        };
        (self.effects(&mut state), result)
    }

    /// Takes the function away from the guest: interrupts, memory slots and bus mastering go, and it is
    /// reset. After this it reads as all-ones and does no DMA, so that the memory it could reach may be
    /// unmapped.
    ///
    /// # Errors
    ///
    /// The first failure; what comes after it is done all the same. Calling it again does nothing.
    pub fn shutdown(&self) -> Result<(), Error> {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.running, false) {
            return Ok(());
        }
        let result = self.reset_locked(&mut state);
        self.take_apart(&mut state, result)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state as it was between two steps, which is a state it can be in.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries a write out, with what is left over of those that failed: a guest that writes the same again
    /// touches nothing new, and a device that did not hear of the last value must hear of it.
    fn settle(&self, state: &mut State, mut written: Written) {
        if state.unsettled {
            written.touched |= Touched::COMMAND | Touched::BARS | Touched::MSIX;
        }
        let result = self.carry_out(state, &written);
        state.unsettled = result.is_err();
        self.log_failure(result);
    }

    /// Does what a config write asks for: windows that move or close go before the device hears of it, and
    /// come after.
    fn carry_out(&self, state: &mut State, written: &Written) -> Result<(), Error> {
        if written.touched.contains(Touched::RESET) {
            return self.reset_locked(state);
        }
        let moves = written.touched.intersects(Touched::COMMAND | Touched::BARS | Touched::POWER);
        if written.touched.contains(Touched::POWER) {
            // Whatever state is asked for: the mappings fault from D3hot on, and D0 places them anew.
            state.config.set_asleep(true);
        }
        let retired = if moves { self.retire_windows(state) } else { Ok(()) };
        let mut result = Ok(());
        for (offset, data) in &written.forward {
            result = self.both(result, self.write_config(*offset, data));
        }
        if written.touched.contains(Touched::COMMAND) {
            result = self.both(result, self.write_command(state.config.command()));
        }
        if written.touched.contains(Touched::POWER) {
            result = self.both(result, self.read_power_state(state));
        }
        // A device that did not take the write may not decode what it should: its mappings would fault.
        if moves && result.is_ok() {
            self.place_windows(state);
        }
        result = self.both(retired, result);
        if let Some(control) = state.config.msix_control() {
            state.msix.write_control(control);
        }
        if written.touched.intersects(Touched::MSIX | Touched::MSI | Touched::COMMAND) {
            result = self.both(result, self.reconcile_interrupts(state));
        }
        result
    }

    /// Ends what the function holds of the host; `result` is what came of the steps before.
    fn take_apart(&self, state: &mut State, mut result: Result<(), Error>) -> Result<(), Error> {
        for event in &mut state.events {
            let unbound = event.unbind().map_err(|source| self.interrupt_error(source));
            result = self.both(result, unbound);
        }
        state.events.clear();
        state.interrupts = Interrupts::default();
        state.windows.clear();
        result
    }

    fn reset_locked(&self, state: &mut State) -> Result<(), Error> {
        let mut result = self.quiesce(state);
        result = self.both(result, self.reset_device());
        // Nothing is decoded any more: this tries again what could not be taken away.
        self.place_windows(state);
        state.unsettled = result.is_err();
        result
    }

    /// Interrupts, memory slots and DMA end, and the guest's view is as after power-on.
    fn quiesce(&self, state: &mut State) -> Result<(), Error> {
        let asleep = state.config.is_asleep();
        state.config.reset();
        state.msix.reset();
        let mut result = self.reconcile_interrupts(state);
        result = self.both(result, self.retire_windows(state));
        if let Some(offset) = state.config.power_control().filter(|_| asleep) {
            // A function without a reset would sleep on.
            result = self.both(result, self.write_config(offset, &[0]));
        }
        // No DMA while a reset is under way, nor after it where the device has none.
        self.both(result, self.write_command(Command::empty()))
    }

    fn reset_device(&self) -> Result<(), Error> {
        let (call, result) = match self.reset {
            Reset::Function => ("VFIO_DEVICE_RESET", self.device.reset()),
            Reset::Bus => (BUS_RESET, self.device.reset_bus()),
            Reset::Nothing => return Ok(()),
        };
        let address = self.address;
        result.map_err(|source| Error::Reset { address, call, source })
    }

    fn region_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        let Some(region) = self.regions.get(usize::from(bar.number())) else {
            return data.fill(0xff);
        };
        let result = match bar {
            BarIndex::ROM => self.rom_read(region, offset, data),
            _ => self.device.read(region, offset, data),
        };
        if let Err(source) = result {
            data.fill(0xff);
            self.warn(&self.region_error("read", region, source));
        }
    }

    /// From a copy: a ROM does not change, and at each read of it the host's kernel walks its images anew.
    fn rom_read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let rom = match self.rom.get() {
            Some(rom) => rom,
            None => {
                let mut rom =
                    vec![0; usize::try_from(region.size.min(MAX_ROM)).unwrap_or_default()];
                self.device.read(region, 0, &mut rom)?;
                self.rom.get_or_init(|| rom)
            }
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(data.len());
        match rom.get(start..end) {
            Some(found) => data.copy_from_slice(found),
            None => data.fill(0xff),
        }
        Ok(())
    }

    fn region_write(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        let region = self.regions.get(usize::from(bar.number()));
        // A ROM ignores writes.
        let Some(region) = region.filter(|region| region.flags.contains(RegionFlags::WRITE)) else {
            return;
        };
        if let Err(source) = self.device.write(region, offset, data) {
            self.warn(&self.region_error("write", region, source));
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), Error> {
        let result = self.device.write(&self.config_region, u64::from(offset), data);
        result.map_err(|source| self.region_error("write", &self.config_region, source))
    }

    fn write_command(&self, command: Command) -> Result<(), Error> {
        let command = command | self.host_command;
        self.write_config(COMMAND, &command.bits().to_le_bytes())
    }

    fn region_error(
        &self,
        operation: &'static str,
        region: &RegionInfo,
        source: io::Error,
    ) -> Error {
        Error::Region { address: self.address, operation, region: region.index, source }
    }

    fn window_error(&self, operation: &'static str, bar: BarIndex, source: io::Error) -> Error {
        Error::Window { address: self.address, operation, bar, source }
    }

    /// The first failure; a second one is logged, so that none is lost.
    fn both(&self, first: Result<(), Error>, second: Result<(), Error>) -> Result<(), Error> {
        match (first, second) {
            (Err(first), Err(second)) => {
                self.warn(&second);
                Err(first)
            }
            (first, second) => first.and(second),
        }
    }

    fn log_failure(&self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.warn(&error);
        }
    }

    fn interrupt_error(&self, source: irq::Error) -> Error {
        let address = self.address;
        Error::Interrupts { address, source }
    }

    /// A device that was given up fails whatever was under way, which is no news.
    fn warn(&self, error: &Error) {
        if !self.is_lost() && self.warnings.fetch_add(1, Ordering::Relaxed) < ACCESS_WARNINGS {
            log::warn!("{error}");
        }
    }
}

impl Drop for PassthroughFunction {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            log::error!("{error}");
        }
    }
}
