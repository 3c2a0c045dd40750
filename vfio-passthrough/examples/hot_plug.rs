//! Adds a device to a guest that runs, and removes it. All RAM is mapped for DMA when the first device
//! comes, and unmapped when the last one has left: a guest without devices pins nothing.
//!
//! ```console
//! $ cargo run --features model --example hot_plug
//! ```
//!
//! The device and the IOMMU are those of the model. A VMM has both from an [`IommuContext`]: see `add`.
//!
//! [`IommuContext`]: vfio_passthrough::IommuContext
#![allow(clippy::arithmetic_side_effects, reason = "a program that overflows fails")]

use std::error::Error;
use std::sync::Arc;

use vfio_passthrough::backend::{Device, IrqFlags};
use vfio_passthrough::dma::Mapping;
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::model::{Faults, Guest, Iommu, PciDevice};
use vfio_passthrough::{DmaSpace, Iova, PassthroughFunction, PciAddress, ResetPolicy, VmmServices};
use vm_memory::{GuestAddress, GuestRegionMmap};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a VMM has of a guest that runs.
struct Vm {
    /// RAM, at the same addresses for guest and devices.
    ram: Vec<(Iova, Arc<dyn HostMemory>)>,
    services: VmmServices,
    /// That of `IommuContext::dma`.
    dma: DmaSpace,
    /// RAM is mapped while there is a device.
    mappings: Vec<Mapping>,
    functions: Vec<Arc<PassthroughFunction>>,
}

impl Vm {
    /// Adds an open device: that of `IommuContext::open_device`. A VMM that may open no file any more
    /// takes it from `IommuContext::open_device_with`, with an open file and a copy of sysfs that
    /// another process made (`context::Nodes`, `DeviceOptions`).
    ///
    /// # Errors
    ///
    /// Those of `PassthroughFunction::new`: the device has no reset, or does not respond, for
    /// example. Those of `DmaSpace::map_all`: the IOMMU cannot map where RAM lies
    /// (`dma::Error::OutOfReach`), or the limit on locked memory is too low (`dma::Error::Map`;
    /// `dma::LockedMemoryLimit` finds that before). The guest is as before, and the device is closed.
    fn add(&mut self, address: PciAddress, device: Arc<dyn Device>) -> Result<()> {
        let policy = ResetPolicy::Required;
        let function = PassthroughFunction::new(address, device, &self.services, policy)?;
        if self.functions.is_empty() {
            self.mappings = self.dma.map_all(self.ram.clone())?;
        }
        self.functions.push(Arc::new(function));
        self.set_peers()
        // Now put the function on your bus, and notify the guest of its slot. The guest gives the BARs
        // their addresses, so that `place_bar` is not called.
    }

    /// Removes a device that the guest has ejected, or that the host takes.
    ///
    /// # Errors
    ///
    /// The first failure of `PassthroughFunction::detach`, or of `Mapping::unmap`, which keeps the
    /// memory then. The device is closed in any case.
    fn remove(&mut self, address: PciAddress) -> Result<()> {
        let is_other = |function: &Arc<PassthroughFunction>| function.address() != address;
        let removed = self.functions.iter().find(|function| !is_other(function));
        let removed = removed.ok_or("the guest has no such device")?.clone();
        // Take it off your bus first. After that no effect has to be carried out.
        self.functions.retain(is_other);
        let (_, detached) = removed.detach();
        let peers = self.set_peers();
        if self.functions.is_empty() {
            self.mappings.drain(..).try_for_each(|mapping| mapping.unmap().map(drop))?;
        }
        peers.and(Ok(detached?))
    }

    /// Devices reach each other's BARs as long as there are two.
    fn set_peers(&self) -> Result<()> {
        let peers = (self.functions.len() > 1).then_some(&self.dma);
        let mut functions = self.functions.iter();
        Ok(functions.try_for_each(|function| function.set_peers(peers.cloned()))?)
    }
}

/// Adds two devices to a guest of the model, removes both, and returns a line for each step.
pub fn run(iommu: &Arc<Iommu>, guest: &Guest) -> Result<Vec<String>> {
    let memory = GuestRegionMmap::<()>::from_range(GuestAddress(0), 0x10_0000, None)?;
    let mut vm = Vm {
        ram: vec![(Iova(0), Arc::new(memory))],
        services: guest.services(),
        dma: DmaSpace::new(iommu.clone()),
        mappings: Vec::new(),
        functions: Vec::new(),
    };
    let addresses: [PciAddress; 2] = ["01:00.0".parse()?, "02:00.0".parse()?];
    let line = |what: &str, address| {
        format!("{what} {address}: {} mappings of RAM", iommu.mappings().len())
    };
    let mut lines = Vec::new();
    for address in addresses {
        let device = PciDevice::nvme(Arc::new(Faults::default()), IrqFlags::EVENTFD)?;
        vm.add(address, Arc::new(device))?;
        lines.push(line("added", address));
    }
    for address in addresses {
        vm.remove(address)?;
        lines.push(line("removed", address));
    }
    Ok(lines)
}

fn main() -> Result<()> {
    let faults = Arc::new(Faults::default());
    let (iommu, guest) = (Arc::new(Iommu::new(faults.clone())), Guest::new(faults));
    run(&iommu, &guest)?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
