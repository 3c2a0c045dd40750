//! Puts a function together from what VFIO says of a device. Every step is undone if a later one fails: each is a value that undoes itself.

use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use vfio_bindings::bindings::vfio::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};

use crate::address::{BarIndex, ByteRange, PciAddress};
use crate::backend::{Device, DeviceFlags, RegionInfo, host_page_size};
use crate::counters::FunctionTraps;
use crate::function::{Error, PassthroughFunction, State};
use crate::host::{MemorySlots, MsiRouter};
use crate::irq::binding::MsixBinding;
use crate::layout::direct_areas;
use crate::pci::bar::{Bar, Space};
use crate::pci::config::ConfigSpace;
use crate::pci::msix::{MsixLayout, MsixState};
use crate::window::Window;

/// What a function needs of the VMM that it is in.
#[derive(Clone)]
pub struct Host {
    /// Puts BARs into the guest's memory.
    pub slots: Arc<dyn MemorySlots>,
    /// Routes interrupts into the guest.
    pub msi: Arc<dyn MsiRouter>,
}

impl PassthroughFunction {
    /// Makes a function of an opened device, as it is after power-on: BARs not placed, nothing decoded, interrupts off.
    ///
    /// The kernel has reset the device when it was opened, so it is not reset here again.
    ///
    /// # Errors
    ///
    /// [`Error::Region`], [`Error::NotUsable`] for what is not a PCI function, [`Error::Vectors`].
    pub fn new(address: PciAddress, device: Arc<dyn Device>, host: &Host) -> Result<Self, Error> {
        if !device.flags().contains(DeviceFlags::PCI) {
            return Err(Error::NotUsable {
                address,
                reason: "VFIO does not call it a PCI device",
            });
        }
        let parts = Parts { address, device };
        let config_region = parts.region(VFIO_PCI_CONFIG_REGION_INDEX)?;
        let regions = BarIndex::all()
            .map(|bar| parts.region(u32::from(bar.number())))
            .collect::<Result<Vec<_>, _>>()?;
        let config = parts.config(&config_region, &regions)?;
        let msix = config.msix();
        let state = State {
            msix: MsixState::new(msix.map_or(0, |layout| layout.vectors)),
            binding: msix.map(|layout| parts.binding(layout, host)).transpose()?,
            windows: parts.windows(config.bars(), &regions, msix)?,
            config,
            running: true,
        };
        let bars = state.config.bars().to_vec();
        let Parts { address, device } = parts;
        Ok(Self {
            address,
            device,
            config_region,
            regions,
            bars,
            msix,
            slots: host.slots.clone(),
            traps: FunctionTraps::default(),
            warnings: AtomicU32::new(0),
            state: Mutex::new(state),
        })
    }
}

struct Parts {
    address: PciAddress,
    device: Arc<dyn Device>,
}

impl Parts {
    fn error(&self, operation: &'static str, region: u32) -> impl FnOnce(io::Error) -> Error {
        let address = self.address;
        move |source| Error::Region {
            address,
            operation,
            region,
            source,
        }
    }

    fn region(&self, index: u32) -> Result<RegionInfo, Error> {
        self.device.region(index).map_err(self.error("describe", index))
    }

    fn config(&self, region: &RegionInfo, bars: &[RegionInfo]) -> Result<ConfigSpace, Error> {
        let mut sizes = [0; BarIndex::COUNT as usize];
        sizes
            .iter_mut()
            .zip(bars)
            .for_each(|(size, bar)| *size = bar.size);
        let size = u16::try_from(region.size).unwrap_or(u16::MAX);
        let read = |offset, data: &mut [u8]| self.device.read(region, u64::from(offset), data);
        ConfigSpace::new(size, &sizes, read).map_err(self.error("read", region.index))
    }

    fn binding(&self, layout: MsixLayout, host: &Host) -> Result<MsixBinding, Error> {
        let irq = self
            .device
            .irq(VFIO_PCI_MSIX_IRQ_INDEX)
            .map_err(self.error("describe the interrupts of", 0))?;
        let vectors = layout.vectors;
        let allocated = host.msi.allocate(vectors);
        let allocated = allocated.map_err(|source| Error::Vectors {
            address: self.address,
            vectors,
            source,
        })?;
        Ok(MsixBinding::new(self.device.clone(), irq, allocated))
    }

    /// The direct areas of all memory BARs. One that cannot be mapped is trapped instead.
    fn windows(
        &self,
        bars: &[Bar],
        regions: &[RegionInfo],
        msix: Option<MsixLayout>,
    ) -> Result<Vec<Window>, Error> {
        let mut windows = Vec::new();
        for bar in bars.iter().filter(|bar| bar.kind.space() == Space::Memory) {
            let Some(region) = regions.get(usize::from(bar.index.number())) else {
                continue;
            };
            for area in direct_areas(region, &trapped_in(bar.index, msix), host_page_size()) {
                match Window::new(self.device.clone(), region, bar.index, area) {
                    Ok(window) => windows.push(window),
                    Err(error) => log::warn!(
                        "{}: {} at {} is trapped: mmap: {error}",
                        self.address,
                        bar.index,
                        area.0
                    ),
                }
            }
        }
        Ok(windows)
    }
}

/// Where the structures of MSI-X are in a BAR.
fn trapped_in(bar: BarIndex, msix: Option<MsixLayout>) -> Vec<ByteRange> {
    let places = msix.map(|layout| [(layout.table_bar, layout.table), (layout.pba_bar, layout.pba)]);
    places
        .into_iter()
        .flatten()
        .filter(|(own, _)| *own == bar)
        .map(|(_, range)| range)
        .collect()
}
