//! Where a function's BARs are in the guest's memory, and what takes them there and away.

use std::sync::atomic::Ordering;

use super::{ConfigEffects, Error, PassthroughFunction, State};
use crate::address::{BarIndex, ByteRange};
use crate::dma;
use crate::pci::bar::{Bar, Space};
use crate::pci::config::ConfigSpace;
use crate::pci::regs::PM_STATE;
use crate::window::Window;

impl PassthroughFunction {
    /// Which BAR decodes an address now, and where in it the address is.
    pub fn decode(&self, space: Space, address: u64) -> Option<(BarIndex, u64)> {
        let state = self.lock();
        self.bars.iter().filter(|bar| bar.kind.space() == space).find_map(|bar| {
            let range = ByteRange::new(state.config.decoded(bar)?, bar.size)?;
            Some((bar.index, range.offset_of(address)?))
        })
    }

    /// Places what the host VMM refused to place before: for a bus, after another function gave memory up.
    /// Costs nothing where nothing was refused. Writing a BAR or the command register of the function itself
    /// does it too.
    pub fn retry_placement(&self) -> ConfigEffects {
        let mut state = self.lock();
        self.place_windows(&mut state);
        self.effects(&mut state)
    }

    /// Takes away what is not where the guest has its BAR now.
    pub(super) fn retire_windows(&self, state: &mut State) -> Result<(), Error> {
        let mut result = Ok(());
        for window in &mut state.windows {
            let base = base(&self.bars, &state.config, window.bar());
            let retired = self.retire(window, base, &mut state.freed);
            result = self.both(result, retired);
        }
        result
    }

    /// Takes all windows away, wherever the guest has its BARs.
    pub(super) fn hide_windows(&self, state: &mut State) -> Result<(), Error> {
        let mut result = Ok(());
        for window in &mut state.windows {
            let retired = self.retire(window, None, &mut state.freed);
            result = self.both(result, retired);
        }
        result
    }

    /// From other devices first: the kernel takes the pages of a device that does not decode from this process, and
    /// not from the IOMMU.
    fn retire(
        &self,
        window: &mut Window,
        base: Option<u64>,
        freed: &mut bool,
    ) -> Result<(), Error> {
        let unmapped = window.unmap(base).map(|was| {
            if was {
                self.traps.p2p_unmaps.increment();
            }
        });
        let unmapped = unmapped.map_err(|source| self.p2p_error(window.bar(), source));
        let retired = window.retire(base).map(|gone| *freed |= gone);
        let retired =
            retired.map_err(|source| self.window_error("take away", window.bar(), source));
        self.both(unmapped, retired)
    }

    /// Puts every window where the guest has its BAR now. What is refused stays trapped, and what could not
    /// be taken away is tried again.
    pub(super) fn place_windows(&self, state: &mut State) {
        self.log_failure(self.retire_windows(state));
        for window in &mut state.windows {
            let base = base(&self.bars, &state.config, window.bar());
            match window.place(base, &*self.slots) {
                Ok(()) => self.map_for_others(window),
                Err(source) => self.warn(&self.window_error("place", window.bar(), source)),
            }
        }
    }

    /// A device that cannot reach this one by DMA is as on a host whose root complex does not pass it on: most
    /// guests never ask. So a failure is one warning, and no more.
    fn map_for_others(&self, window: &mut Window) {
        let Some(space) = &self.p2p else { return };
        match window.map(space) {
            Ok(true) => self.traps.p2p_maps.increment(),
            Ok(false) => {}
            Err(source) => {
                let error = self.p2p_error(window.bar(), source);
                if !self.p2p_refused.swap(true, Ordering::Relaxed) {
                    log::warn!("{error}");
                }
            }
        }
    }

    fn p2p_error(&self, bar: BarIndex, source: dma::Error) -> Error {
        let address = self.address;
        Error::P2p { address, bar, source }
    }

    pub(super) fn read_power_state(&self, state: &mut State) -> Result<(), Error> {
        let Some(offset) = state.config.power_control() else {
            return Ok(());
        };
        let mut data = [0; 2];
        let result = self.device.read(&self.config_region, u64::from(offset), &mut data);
        result.map_err(|source| self.region_error("read", &self.config_region, source))?;
        state.config.set_asleep(u16::from_le_bytes(data) & PM_STATE != 0);
        Ok(())
    }
}

/// Where the guest has a BAR now.
fn base(bars: &[Bar], config: &ConfigSpace, index: BarIndex) -> Option<u64> {
    bars.iter().find(|bar| bar.index == index).and_then(|bar| config.decoded(bar))
}
