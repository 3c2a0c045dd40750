//! The devices of `--vfio`, opened in one container.

use std::os::fd::RawFd;
use std::sync::Arc;

use resources::AddressRange;
use vfio_passthrough::context::AssignedDevice;
use vfio_passthrough::counters::VfioCalls;
use vfio_passthrough::dma::{Mapping, allow_locked_memory};
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::kvm::KvmHost;
use vfio_passthrough::{
    IommuContext, Iova, PassthroughFunction, PciAddress, ResetPolicy, VmmServices,
};
use vm_memory::GuestMemoryRegion;

use super::functions::Functions;
use crate::config::Passthrough;
use crate::error::Error;
use crate::guest::boot::intx_gsi;
use crate::guest::memory::Ram;
use crate::host::passed_fds::PassedFds;

/// The host bridge occupies slot 0.
const FIRST_SLOT: u8 = 1;

/// The open assigned devices and their shared I/O address space. They stay open while the guest
/// reboots.
pub(crate) struct Devices {
    container: IommuContext,
    opened: Vec<Opened>,
}

struct Opened {
    /// The slot on the guest's bus.
    slot: u8,
    address: PciAddress,
    device: Arc<AssignedDevice>,
    reset: ResetPolicy,
    p2p: bool,
}

impl Devices {
    /// Opens the requested devices in one container that is linked to the VM of `host`; `None` if
    /// no device is requested.
    pub(crate) fn open(
        (asked, container): (&[Passthrough], Option<RawFd>),
        addresses: Vec<PciAddress>,
        mut passed: PassedFds,
        host: &KvmHost,
    ) -> Result<Option<Self>, Error> {
        if asked.is_empty() {
            return Ok(None);
        }
        let container = match container {
            None => IommuContext::open()?,
            Some(fd) => IommuContext::open_by(passed.remove(fd)?)?,
        };
        link(&container, host)?;
        let mut open =
            |((slot, address), asked): ((u8, PciAddress), &Passthrough)| -> Result<_, Error> {
                let device = match asked.group {
                    None => container.open_device(address)?,
                    Some(fd) => container.open_device_by(address, passed.remove(fd)?)?,
                };
                Ok(Opened { slot, address, device, reset: asked.reset, p2p: asked.p2p })
            };
        let opened =
            (FIRST_SLOT..).zip(addresses).zip(asked).map(&mut open).collect::<Result<_, _>>()?;
        Ok(Some(Self { container, opened }))
    }

    /// Links the container to the VM of `host`.
    pub(crate) fn link(&self, host: &KvmHost) -> Result<(), Error> {
        link(&self.container, host)
    }

    /// Creates the functions in their power-on state, in the VM of `host`. A device that was
    /// detached in an earlier life of the guest has no function.
    pub(crate) fn functions(&self, host: &KvmHost) -> Result<Functions, Error> {
        // Peer-to-peer DMA needs a second device.
        let others = self.opened.len() > 1;
        let function = |opened: &Opened| -> Result<_, Error> {
            let p2p = (others && opened.p2p).then(|| self.container.dma().clone());
            let host = VmmServices { p2p, ..host.services_with_intx(intx_gsi(opened.slot)) };
            let device = opened.device.clone();
            let function = PassthroughFunction::new(opened.address, device, &host, opened.reset)?;
            Ok((opened.slot, Arc::new(function)))
        };
        let remaining = self.opened.iter().filter(|opened| !opened.device.is_closed());
        Ok(Functions::new(remaining.map(function).collect::<Result<_, _>>()?))
    }

    /// The IOVA ranges that the IOMMU can map.
    pub(crate) fn apertures(&self) -> Result<Vec<AddressRange>, Error> {
        let ranges = self.container.dma().iova_ranges()?;
        Ok(ranges.iter().map(|range| AddressRange::new(range.start(), range.size())).collect())
    }

    /// Maps all of `ram` for DMA, which pins it; maps all regions or none.
    pub(crate) fn map(&self, ram: &Ram) -> Result<Vec<Mapping>, Error> {
        self.allow_locked_memory(ram)?;
        let memory = ram.regions().iter().map(|region| {
            let memory: Arc<dyn HostMemory> = region.clone();
            (Iova(region.start_addr().0), memory)
        });
        Ok(self.container.dma().map_all(memory)?)
    }

    /// Groups that cannot share a container pin the memory once for each container. The limit was
    /// checked for one before the devices were opened.
    fn allow_locked_memory(&self, ram: &Ram) -> Result<(), Error> {
        let spaces = self.container.dma().address_spaces();
        if spaces > 1 {
            let sizes = ram.regions().iter().map(|region| region.len());
            let size = sizes.fold(0, u64::saturating_add);
            allow_locked_memory(size.saturating_mul(spaces as u64))?;
        }
        Ok(())
    }

    /// The counters of VFIO calls.
    pub(crate) fn calls(&self) -> Arc<VfioCalls> {
        Arc::clone(self.container.calls())
    }
}

fn link(container: &IommuContext, host: &KvmHost) -> Result<(), Error> {
    let link = host.link().map_err(Error::system("KVM_CREATE_DEVICE(VFIO)"))?;
    Ok(container.link(link)?)
}
