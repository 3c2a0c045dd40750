//! Which windows are in guest memory, and what puts them there and takes them away.

use std::sync::Arc;

use super::areas::direct_areas;
use super::window::Window;
use crate::address::{BarIndex, ByteRange};
use crate::backend::{RegionInfo, host_page_size};
use crate::counters::FunctionTraps;
use crate::device::{FirstError, FunctionDevice};
use crate::dma::{self, DmaSpace};
use crate::error::Error;
use crate::host::MemorySlots;
use crate::pci::bar::Space;
use crate::pci::config::ConfigSpace;
use crate::pci::msix::MsixLayout;

/// The windows of a function, in guest memory or not.
pub(crate) struct Placement {
    device: Arc<FunctionDevice>,
    windows: Vec<Window>,
    slots: Arc<dyn MemorySlots>,
    /// Where other devices of the guest reach the BARs by DMA.
    peers: Option<DmaSpace>,
    /// A warning was logged that the IOMMU cannot map a BAR for other devices.
    warned_of_peers: bool,
    traps: Arc<FunctionTraps>,
    /// A memory slot was removed since this was last asked: another BAR may fit where it was.
    freed: bool,
}

impl Placement {
    /// Maps the direct areas of all memory BARs into this process. The guest sees none of them yet. An area that
    /// cannot be mapped is trapped instead.
    pub fn new(
        device: Arc<FunctionDevice>,
        config: &ConfigSpace,
        regions: &[RegionInfo],
        (slots, peers): (Arc<dyn MemorySlots>, Option<DmaSpace>),
        traps: Arc<FunctionTraps>,
    ) -> Self {
        let windows = windows(&device, config, regions);
        Self { device, windows, slots, peers, warned_of_peers: false, traps, freed: false }
    }

    /// Removes each window that is not where the guest has its BAR now.
    pub fn retire(&mut self, config: &ConfigSpace) -> Result<(), Error> {
        self.retire_where(|bar| base(config, bar))
    }

    /// Removes all windows, wherever the guest has its BARs.
    pub fn retire_all(&mut self) -> Result<(), Error> {
        self.retire_where(|_| None)
    }

    fn retire_where(&mut self, base: impl Fn(BarIndex) -> Option<u64>) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        for window in &mut self.windows {
            let (base, bar) = (base(window.bar()), window.bar());
            // First from other devices: the kernel takes the pages of a device that does not decode from this
            // process (vfio_pci_zap_bars), and not from the IOMMU.
            let unmapped = window.unmap(base).map(|was_mapped| {
                if was_mapped {
                    self.traps.p2p_unmaps.increment();
                }
            });
            errors.add(unmapped.map_err(|source| peer_error(&self.device, bar, source)));
            let removed = window.retire(base).map(|removed| self.freed |= removed);
            errors.add(removed.map_err(|source| {
                let (address, operation) = (self.device.address, "remove the memory slot of");
                Error::Window { address, operation, bar, source }
            }));
        }
        errors.into_result()
    }

    /// Puts each window where the guest has its BAR now. A window whose memory slot is refused stays trapped, and
    /// one that could not be removed is tried again.
    pub fn place(&mut self, config: &ConfigSpace) {
        let retired = self.retire(config);
        self.device.warn_of(retired);
        for window in &mut self.windows {
            let bar = window.bar();
            match window.place(base(config, bar), &self.slots) {
                Ok(()) => map_for_peers(
                    window,
                    self.peers.as_ref(),
                    (&self.device, &self.traps, &mut self.warned_of_peers),
                ),
                Err(source) => {
                    let (address, operation) = (self.device.address, "place the memory slot of");
                    self.device.warn(&Error::Window { address, operation, bar, source });
                }
            }
        }
    }

    /// Gives the device's memory back for good, also where a memory slot could not be removed.
    pub fn release(&mut self) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        for window in &mut self.windows {
            let (address, operation, bar) = (self.device.address, "unmap", window.bar());
            let released = window.release();
            errors.add(released.map_err(|source| Error::Window {
                address,
                operation,
                bar,
                source,
            }));
        }
        errors.into_result()
    }

    /// Drops the windows.
    pub fn clear(&mut self) {
        self.windows.clear();
    }

    /// A memory slot was removed since the last call.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }
}

/// Maps a window for the DMA of other devices. A device that cannot reach this one is as on a host whose root complex
/// does not route between its ports: most guests never ask. So a failure is one warning for each function.
fn map_for_peers(
    window: &mut Window,
    peers: Option<&DmaSpace>,
    (device, traps, warned): (&FunctionDevice, &FunctionTraps, &mut bool),
) {
    let Some(space) = peers else { return };
    match window.map(space) {
        Ok(true) => traps.p2p_maps.increment(),
        Ok(false) => {}
        Err(source) => {
            let error = peer_error(device, window.bar(), source);
            if !std::mem::replace(warned, true) {
                log::warn!("{error}");
            }
        }
    }
}

fn peer_error(device: &FunctionDevice, bar: BarIndex, source: dma::Error) -> Error {
    Error::P2p { address: device.address, bar, source }
}

/// Where the guest has a BAR now.
fn base(config: &ConfigSpace, index: BarIndex) -> Option<u64> {
    let bar = config.bars().iter().find(|bar| bar.index == index)?;
    config.decoded(bar)
}

fn windows(device: &FunctionDevice, config: &ConfigSpace, regions: &[RegionInfo]) -> Vec<Window> {
    let mut windows = Vec::new();
    for bar in config.bars().iter().filter(|bar| bar.kind.space() == Space::Memory) {
        let Some(region) = regions.get(usize::from(bar.index.number())) else { continue };
        for area in direct_areas(region, &trapped(bar.index, config.msix()), host_page_size()) {
            match Window::new(device.device.clone(), region, bar.index, area) {
                Ok(window) => windows.push(window),
                Err(error) => {
                    let (address, bar, area) = (device.address, bar.index, area.0);
                    log::warn!("{address}: {bar} at {area} is trapped: mmap: {error}");
                }
            }
        }
    }
    windows
}

/// Where the structures of MSI-X are in a BAR.
fn trapped(bar: BarIndex, msix: Option<MsixLayout>) -> Vec<ByteRange> {
    let places =
        msix.map(|layout| [(layout.table_bar, layout.table), (layout.pba_bar, layout.pba)]);
    let own = places.into_iter().flatten().filter(|(own, _)| *own == bar);
    own.map(|(_, range)| range).collect()
}
