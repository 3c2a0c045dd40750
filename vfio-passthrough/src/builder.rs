//! Puts a function together from what VFIO says of a device. Every step is undone if a later one fails: each
//! is a value that undoes itself.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, OnceLock};

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

use crate::address::{BarIndex, ByteRange, PciAddress};
use crate::backend::{Device, DeviceFlags, IrqInfo, RegionInfo, host_page_size};
use crate::counters::FunctionTraps;
use crate::dma::DmaSpace;
use crate::function::{BUS_RESET, Error, PassthroughFunction, Reset, ResetPolicy, State, choose};
use crate::host::{IntxLine, MemorySlots, MsiRouter};
use crate::irq::Interrupts;
use crate::irq::binding::{Binding, Kind};
use crate::irq::event::Event;
use crate::irq::intx::Intx;
use crate::layout::direct_areas;
use crate::pci::bar::{Bar, Space};
use crate::pci::config::ConfigSpace;
use crate::pci::msix::{MsixLayout, MsixState};
use crate::pci::regs::{COMMAND, CONVENTIONAL_SIZE, Command};
use crate::pci::view::RegionSizes;
use crate::sync::Mutex;
use crate::window::Window;

/// What a function needs of the VMM that it is in.
#[derive(Clone)]
pub struct Host {
    /// Puts BARs into the guest's memory.
    pub slots: Arc<dyn MemorySlots>,
    /// Routes message-signalled interrupts into the guest.
    pub msi: Arc<dyn MsiRouter>,
    /// The line that the function's INTx pin is wired to; without one the guest sees a function without a
    /// pin.
    pub intx: Option<Arc<dyn IntxLine>>,
    /// Where other devices of the guest reach the function's BARs by DMA, as far as they are in the guest's memory
    /// and the IOMMU can map them; `None`: nowhere. A function that is the guest's only one needs none.
    pub p2p: Option<DmaSpace>,
}

impl PassthroughFunction {
    /// Makes a function of an opened device, as it is after power-on: BARs not placed, nothing decoded,
    /// interrupts off.
    ///
    /// The kernel has reset the device when it was opened, so it is not reset here again, unless it can only
    /// be reset with its whole bus, which the kernel leaves to its user.
    ///
    /// # Errors
    ///
    /// [`Error::Region`], [`Error::NotUsable`] for what is not a PCI function, [`Error::Vectors`],
    /// [`Error::NoReset`] where `reset` asks for one and there is none, [`Error::Reset`].
    pub fn new(
        address: PciAddress,
        device: Arc<dyn Device>,
        host: &Host,
        reset: ResetPolicy,
    ) -> Result<Self, Error> {
        if !device.flags().contains(DeviceFlags::PCI) {
            return Err(Error::NotUsable { address, reason: "VFIO does not call it a PCI device" });
        }
        let parts = Parts { address, device };
        let config_region = parts.region(VFIO_PCI_CONFIG_REGION_INDEX)?;
        let reset = parts.reset(reset, &config_region)?;
        let regions = BarIndex::all()
            .chain([BarIndex::ROM])
            .map(|bar| parts.region(u32::from(bar.number())))
            .collect::<Result<Vec<_>, _>>()?;
        let conventional = parts.conventional(&config_region)?;
        let config = parts.config(&config_region, &regions, &conventional)?;
        // A guest that resets a function means no other: a reset of the bus is for the ends of a guest's life.
        let config = if reset == Reset::Function { config } else { config.without_flr() };
        let (config, interrupts) = parts.interrupts(config, host)?;
        let msix = config.msix();
        let request = parts.event(Kind::Request)?;
        let error = parts.event(Kind::Error)?;
        let eventfd = |event: &Option<Event>| event.as_ref().map(|event| event.eventfd().clone());
        let (request_event, error_event) = (eventfd(&request), eventfd(&error));
        let state = State {
            msix: MsixState::new(msix.map_or(0, |layout| layout.vectors)),
            interrupts,
            windows: parts.windows(config.bars(), &regions, msix)?,
            events: [request, error].into_iter().flatten().collect(),
            config,
            sequence: 0,
            freed: false,
            unsettled: false,
            running: true,
        };
        let bars = state.config.bars().to_vec();
        let Parts { address, device } = parts;
        Ok(Self {
            address,
            device,
            config_region,
            host_command: host_command(&conventional),
            regions,
            bars,
            msix,
            slots: host.slots.clone(),
            p2p: host.p2p.clone(),
            p2p_refused: AtomicBool::new(false),
            rom: OnceLock::new(),
            reset,
            traps: FunctionTraps::default(),
            warnings: AtomicU32::new(0),
            request: request_event,
            error: error_event,
            lost: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }
}

/// The first 256 bytes of config space.
type Conventional = [u8; CONVENTIONAL_SIZE as usize];

/// What of the command register the host has set and the guest has no say in.
fn host_command(conventional: &Conventional) -> Command {
    let at = usize::from(COMMAND);
    let bytes = conventional.get(at..).and_then(<[u8]>::first_chunk);
    let found = Command::from_bits_retain(bytes.copied().map_or(0, u16::from_le_bytes));
    found & Command::SERR
}

struct Parts {
    address: PciAddress,
    device: Arc<dyn Device>,
}

impl Parts {
    fn error(&self, operation: &'static str, region: u32) -> impl FnOnce(io::Error) -> Error {
        let address = self.address;
        move |source| Error::Region { address, operation, region, source }
    }

    /// The way in which the function is reset; a reset of its bus is done at once.
    fn reset(&self, policy: ResetPolicy, config: &RegionInfo) -> Result<Reset, Error> {
        let address = self.address;
        let found = choose(address, self.device.flags(), || self.device.bus_members());
        match (found, policy) {
            (Ok(Reset::Bus), _) => self.reset_bus(config).map(|()| Reset::Bus),
            (Ok(reset), _) => Ok(reset),
            (Err(reason), ResetPolicy::Required) => Err(Error::NoReset { address, reason }),
            (Err(reason), ResetPolicy::IfPossible) => {
                log::warn!(
                    "{address}: {reason}; the guest gets it in the state in which its last user left it"
                );
                Ok(Reset::Nothing)
            }
        }
    }

    fn reset_bus(&self, config: &RegionInfo) -> Result<(), Error> {
        // No DMA while the reset is under way; the kernel restores what it finds now.
        let quiet = host_command(&self.conventional(config)?).bits().to_le_bytes();
        let quiet = self.device.write(config, COMMAND.into(), &quiet);
        quiet.map_err(self.error("write", config.index))?;
        self.device.reset_bus().map_err(|source| Error::Reset {
            address: self.address,
            call: BUS_RESET,
            source,
        })
    }

    fn region(&self, index: u32) -> Result<RegionInfo, Error> {
        self.device.region(index).map_err(self.error("describe", index))
    }

    fn conventional(&self, region: &RegionInfo) -> Result<Conventional, Error> {
        let mut conventional = [0; CONVENTIONAL_SIZE as usize];
        let read = self.device.read(region, 0, &mut conventional);
        read.map_err(self.error("read", region.index))?;
        Ok(conventional)
    }

    fn config(
        &self,
        region: &RegionInfo,
        bars: &[RegionInfo],
        conventional: &Conventional,
    ) -> Result<ConfigSpace, Error> {
        let mut sizes = RegionSizes::default();
        sizes.iter_mut().zip(bars).for_each(|(size, bar)| *size = bar.size);
        let size = u16::try_from(region.size).unwrap_or(u16::MAX);
        // Extended capabilities are few reads, and all of their space would be a thousand of the device.
        let read = |offset: u16, data: &mut [u8]| {
            let range = usize::from(offset)..usize::from(offset).saturating_add(data.len());
            match conventional.get(range) {
                Some(found) => {
                    data.copy_from_slice(found);
                    Ok(())
                }
                None => self.device.read(region, u64::from(offset), data),
            }
        };
        ConfigSpace::new(self.address, size, &sizes, read).map_err(self.error("read", region.index))
    }

    /// The kinds of interrupts that the function, VFIO and the host VMM all have.
    fn interrupts(
        &self,
        config: ConfigSpace,
        host: &Host,
    ) -> Result<(ConfigSpace, Interrupts), Error> {
        let msi = config
            .msi()
            .map(|layout| self.binding(Kind::Msi, layout.vectors(), host))
            .transpose()?;
        let msix = config
            .msix()
            .map(|layout| self.binding(Kind::Msix, layout.vectors, host))
            .transpose()?;
        let line = host.intx.clone().filter(|_| config.pin() != 0);
        let pin = line.is_some() && self.irq(Kind::Intx)?.count != 0;
        let intx =
            line.filter(|_| pin).map(|line| Intx::new(self.address, self.device.clone(), line));
        let config = if pin { config } else { config.without_pin() };
        Ok((config, Interrupts { intx, msi, msix }))
    }

    fn irq(&self, kind: Kind) -> Result<IrqInfo, Error> {
        let address = self.address;
        self.device.irq(kind.index()).map_err(|source| Error::DescribeInterrupts {
            address,
            kind,
            source,
        })
    }

    fn binding(&self, kind: Kind, vectors: u16, host: &Host) -> Result<Binding, Error> {
        let irq = self.irq(kind)?;
        let allocated = host.msi.allocate(vectors);
        let allocated = allocated.map_err(|source| Error::Vectors {
            address: self.address,
            kind,
            vectors,
            source,
        })?;
        Ok(Binding::new(self.address, kind, self.device.clone(), irq, allocated))
    }

    /// An event that VFIO may have of the device.
    fn event(&self, kind: Kind) -> Result<Option<Event>, Error> {
        let address = self.address;
        let there = match self.irq(kind) {
            // An index that VFIO does not know of this device.
            Err(Error::DescribeInterrupts { source, .. })
                if source.raw_os_error() == Some(libc::EINVAL) =>
            {
                false
            }
            irq => irq?.count != 0,
        };
        let event = there.then(|| Event::new(address, kind, self.device.clone()));
        event.transpose().map_err(|source| Error::Interrupts { address, source })
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
    let places =
        msix.map(|layout| [(layout.table_bar, layout.table), (layout.pba_bar, layout.pba)]);
    places.into_iter().flatten().filter(|(own, _)| *own == bar).map(|(_, range)| range).collect()
}
