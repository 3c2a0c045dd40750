//! Places the windows of a function in guest memory, and removes them.

use std::io;
use std::sync::Arc;

use super::areas::{direct_areas, small_area};
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

/// The windows of a function, placed or not.
pub(crate) struct Placement {
    device: Arc<FunctionDevice>,
    windows: Vec<Window>,
    slots: Arc<dyn MemorySlots>,
    /// The DMA space in which the guest's other devices access the BARs.
    peers: Option<DmaSpace>,
    /// The warning about missing memory slots was logged.
    warned_of_slots: bool,
    traps: Arc<FunctionTraps>,
    /// A memory slot was removed since the last call of `take_freed`.
    freed: bool,
}

impl Placement {
    /// Maps the direct areas of all memory BARs into this process, and places none of them. An area
    /// that cannot be mapped is trapped.
    pub fn new(
        device: Arc<FunctionDevice>,
        config: &ConfigSpace,
        regions: &[RegionInfo],
        (slots, peers): (Arc<dyn MemorySlots>, Option<DmaSpace>),
        traps: Arc<FunctionTraps>,
    ) -> Self {
        let windows = windows(&device, config, regions);
        Self { device, windows, slots, peers, warned_of_slots: false, traps, freed: false }
    }

    /// Removes each window that is placed at an address other than its BAR's current one.
    pub fn remove_moved(&mut self, config: &ConfigSpace) -> Result<(), Error> {
        self.remove_where(|bar| base(config, bar))
    }

    /// Removes all windows from guest memory.
    pub fn remove_all(&mut self) -> Result<(), Error> {
        self.remove_where(|_| None)
    }

    fn remove_where(&mut self, base: impl Fn(BarIndex) -> Option<u64>) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        for window in &mut self.windows {
            let (base, bar) = (base(window.bar()), window.bar());
            // The peer-to-peer mapping ends first: when decoding ends the kernel removes the BAR's
            // pages from this process (vfio_pci_zap_bars), but not from the IOMMU.
            let unmapped = window.unmap_unless_at(base).map(|was_mapped| {
                if was_mapped {
                    self.traps.p2p_unmaps.increment();
                }
            });
            errors.add(unmapped.map_err(|source| peer_error(&self.device, bar, source)));
            let removed = window.remove_unless_at(base).map(|removed| self.freed |= removed);
            errors.add(removed.map_err(|source| {
                let (address, operation) = (self.device.address, "remove the memory slot of");
                Error::Window { address, operation, bar, source }
            }));
        }
        errors.into_result()
    }

    /// Places each window at its BAR's current address. A window whose memory slot is refused stays
    /// trapped. If no slot is free, this is logged once for each function. Removals that failed
    /// before are retried.
    pub fn place(&mut self, config: &ConfigSpace) {
        let removed = self.remove_moved(config);
        self.device.warn_of(removed);
        // A CPU that reads a device that does not respond stalls until a timeout (PCIe 2.8). A
        // trapped read gives all-ones at once.
        if self.device.is_absent() {
            return;
        }
        for window in &mut self.windows {
            let bar = window.bar();
            match window.place_at(base(config, bar), &self.slots) {
                Ok(()) => map_for_peers(window, self.peers.as_ref(), (&self.device, &self.traps)),
                Err(source) => {
                    let (address, operation) = (self.device.address, "place the memory slot of");
                    let lacks = source.kind() == io::ErrorKind::StorageFull;
                    if !lacks || !std::mem::replace(&mut self.warned_of_slots, true) {
                        self.device.warn(&Error::Window { address, operation, bar, source });
                    }
                }
            }
        }
    }

    /// Maps the placed windows for the DMA of the guest's other devices in `peers`, or unmaps them.
    pub fn set_peers(
        &mut self,
        peers: Option<DmaSpace>,
        config: &ConfigSpace,
    ) -> Result<(), Error> {
        self.peers = peers;
        if self.peers.is_some() {
            self.place(config);
            return Ok(());
        }
        let mut errors = FirstError::new(&self.device);
        for window in &mut self.windows {
            let (bar, unmapped) = (window.bar(), window.unmap_unless_at(None));
            let unmapped = unmapped.map(|was_mapped| {
                if was_mapped {
                    self.traps.p2p_unmaps.increment();
                }
            });
            errors.add(unmapped.map_err(|source| peer_error(&self.device, bar, source)));
        }
        errors.into_result()
    }

    /// Replaces the device's memory by zeros in all windows, even in those whose memory slot could
    /// not be removed.
    pub fn replace_by_zeros(&self) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        for window in &self.windows {
            let (address, operation, bar) = (self.device.address, "unmap", window.bar());
            let replaced = window.replace_by_zeros();
            errors.add(replaced.map_err(|source| Error::Window {
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

    /// Whether a memory slot was removed since the last call. Another BAR may fit there.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }
}

/// Maps a window for DMA of the guest's other devices. Few guests use peer-to-peer DMA, and a root
/// complex need not support it (PCIe 1.3.1). So a failure is only logged, once for all
/// devices of the guest: iommufd without dma-bufs of BARs refuses each mapping.
fn map_for_peers(
    window: &mut Window,
    peers: Option<&DmaSpace>,
    (device, traps): (&FunctionDevice, &FunctionTraps),
) {
    let Some(space) = peers else { return };
    match window.map(space) {
        Ok(true) => traps.p2p_maps.increment(),
        Ok(false) => {}
        Err(source) => {
            space.report_refusal(&peer_error(device, window.bar(), source));
        }
    }
}

fn peer_error(device: &FunctionDevice, bar: BarIndex, source: dma::Error) -> Error {
    Error::P2p { address: device.address, bar, source }
}

/// The BAR's current address, or `None` if it decodes nothing.
fn base(config: &ConfigSpace, index: BarIndex) -> Option<u64> {
    let bar = config.bars().iter().find(|bar| bar.index == index)?;
    config.decoded(bar)
}

fn windows(device: &FunctionDevice, config: &ConfigSpace, regions: &[RegionInfo]) -> Vec<Window> {
    let mut windows = Vec::new();
    for bar in config.bars().iter().filter(|bar| bar.kind.space() == Space::Memory) {
        let Some(region) = regions.get(usize::from(bar.index.number())) else { continue };
        let (trapped, page) = (trapped(bar.index, config.msix()), host_page_size());
        // A function of PCI Express has no reason to do DMA to such registers of another one.
        let small = small_area(region, &trapped, page).filter(|_| config.is_conventional());
        for area in direct_areas(region, &trapped, page).into_iter().chain(small) {
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

/// The ranges of the MSI-X table and the PBA in a BAR.
fn trapped(bar: BarIndex, msix: Option<MsixLayout>) -> Vec<ByteRange> {
    let places =
        msix.map(|layout| [(layout.table_bar, layout.table), (layout.pba_bar, layout.pba)]);
    let own = places.into_iter().flatten().filter(|(own, _)| *own == bar);
    own.map(|(_, range)| range).collect()
}
