//! A function of the model, and the operations on it.

use std::collections::BTreeSet;
use std::sync::Arc;

use vfio_passthrough::backend::{BusMember, IrqFlags};
use vfio_passthrough::function::Error;
use vfio_passthrough::host::{HostMemory, MsiMessage};
use vfio_passthrough::model::{Faults, Guest, Iommu, Ledger, PciDevice};
use vfio_passthrough::{
    BarIndex, ByteRange, DmaSpace, Iova, PassthroughFunction, ResetPolicy, VmmServices, dma,
};
use vm_memory::{GuestAddress, GuestRegionMmap};

pub const NAME: &str = "0000:01:00.0";
pub const COMMAND: u16 = 0x04;
pub const MSIX_CONTROL: u16 = 0x42;
pub const MSI: u16 = 0x50;
/// Power management control of the NVMe.
pub const POWER: u16 = 0x64;
pub const EXPRESS_CONTROL: u16 = 0x88;
pub const TABLE: u64 = 0x1_0000;
pub const VECTORS: u16 = 5;

/// A device of the model: an INTx pin, MSI, MSI-X, power management, PCI Express with FLR, BAR0.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// MSI-X can grow.
    Dynamic,
    /// MSI-X cannot grow.
    NoResize,
    /// The function can be reset only with its bus.
    BusReset,
    /// The NVMe, which has power management.
    Nvme,
}

impl Shape {
    pub fn device(self, faults: &Arc<Faults>) -> PciDevice {
        let flags = match self {
            Self::NoResize => IrqFlags::EVENTFD | IrqFlags::NORESIZE,
            Self::Nvme => return PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap(),
            Self::Dynamic | Self::BusReset => IrqFlags::EVENTFD,
        };
        // MSI has 64-bit addresses, masks and 4 vectors.
        let device =
            PciDevice::with_interrupts(faults.clone(), Some(0x0184), Some((VECTORS, flags)))
                .unwrap();
        let own = BusMember {
            address: NAME.parse().unwrap(),
            ours: true,
            driver: Some("vfio-pci".to_owned()),
        };
        match self {
            Self::BusReset => device.without_reset(vec![own]),
            _ => device,
        }
    }
}

/// An operation of the guest or the VMM.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    Read(u16),
    Write16(u16, u16),
    Write32(u16, u32),
    BarRead(u64),
    BarWrite(u64, u32),
    Reset,
    Recover,
}

/// The visible state of the function, the device and the guest.
#[derive(Debug, PartialEq)]
pub struct Picture {
    slots: Vec<ByteRange>,
    delivered: Vec<(u16, MsiMessage)>,
    active: Option<u32>,
    bound: BTreeSet<u32>,
    pins: usize,
    resampled: bool,
    /// Config space of the device, and the guest's view of it.
    config: [Vec<u8>; 2],
}

impl Picture {
    /// Describes the differences from `good`.
    pub fn difference(&self, good: &Self) -> String {
        let strip = |picture: &Self| {
            let Self { slots, delivered, active, bound, pins, resampled, .. } = picture;
            format!(
                "slots {slots:?}, delivered {delivered:?}, {active:?} is on, bound {bound:?}, \
                 pins {pins}, {resampled}"
            )
        };
        let mut words = vec![strip(self), "not".to_owned(), strip(good)];
        for (own, good) in self.config.iter().zip(&good.config) {
            let bytes = own.iter().zip(good).enumerate().filter(|(_, (own, good))| own != good);
            words.extend(
                bytes.map(|(at, (own, good))| format!("config {at:#x}: {own:#x}, not {good:#x}")),
            );
        }
        words.join("; ")
    }
}

pub struct Setup {
    pub faults: Arc<Faults>,
    pub iommu: Arc<Iommu>,
    pub device: Arc<PciDevice>,
    pub guest: Guest,
    pub function: PassthroughFunction,
}

/// The parts of a setup that exist before the function.
pub struct Parts {
    pub faults: Arc<Faults>,
    pub iommu: Arc<Iommu>,
    pub device: Arc<PciDevice>,
    pub guest: Guest,
}

impl Parts {
    pub fn new(shape: Shape) -> Self {
        let faults = Arc::new(Faults::default());
        Self {
            iommu: Arc::new(Iommu::new(faults.clone())),
            device: Arc::new(shape.device(&faults)),
            guest: Guest::new(faults.clone()),
            faults,
        }
    }

    pub fn attach(&self) -> Result<PassthroughFunction, Error> {
        let address = NAME.parse().unwrap();
        let host =
            VmmServices { p2p: Some(DmaSpace::new(self.iommu.clone())), ..self.guest.services() };
        PassthroughFunction::new(address, self.device.clone(), &host, ResetPolicy::Required)
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::of(&self.iommu, &self.device, &self.guest)
    }

    /// The number of references to the device besides the test's: of its mappings and its function.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.device) - 1
    }
}

pub fn memory() -> Arc<GuestRegionMmap<()>> {
    Arc::new(GuestRegionMmap::from_range(GuestAddress(0), 0x4000, None).unwrap())
}

/// Maps three pieces of memory.
pub fn map(iommu: &Arc<Iommu>) -> Result<Vec<dma::Mapping>, dma::Error> {
    let piece = |index: u64| (Iova(index << 20), memory() as Arc<dyn HostMemory>);
    DmaSpace::new(iommu.clone()).map_all((0..3).map(piece))
}

fn bar0() -> BarIndex {
    BarIndex::new(0).unwrap()
}

impl Setup {
    /// Attaches a function, and performs these accesses.
    pub fn new(shape: Shape, before: &[Access]) -> Self {
        let parts = Parts::new(shape);
        let function = parts.attach().unwrap();
        let Parts { faults, iommu, device, guest } = parts;
        let setup = Self { faults, iommu, device, guest, function };
        before.iter().for_each(|access| drop(setup.perform(*access)));
        setup
    }

    /// Performs an access. Returns the bytes of a read, or the error of a VMM's operation.
    pub fn perform(&self, access: Access) -> Result<[u8; 4], String> {
        let mut data = [0; 4];
        let function = &self.function;
        match access {
            Access::Read(offset) => function.config_read(offset, &mut data),
            Access::Write16(offset, value) => {
                _ = function.config_write(offset, &value.to_le_bytes())
            }
            Access::Write32(offset, value) => {
                _ = function.config_write(offset, &value.to_le_bytes())
            }
            Access::BarRead(offset) => function.bar_read(bar0(), offset, &mut data),
            Access::BarWrite(offset, value) => {
                let _ = function.bar_write(bar0(), offset, &value.to_le_bytes());
            }
            Access::Reset => function.reset().1.map_err(|error| error.to_string())?,
            Access::Recover => function.recover().1.map_err(|error| error.to_string())?,
        }
        Ok(data)
    }

    pub fn picture(&self) -> Picture {
        let irqs = self.device.irqs();
        let (mut real, mut seen) = (vec![0; 0x100], Vec::new());
        self.device.config(0, &mut real).unwrap();
        for offset in (0..0x100).step_by(4) {
            let mut data = [0; 4];
            self.function.config_read(offset, &mut data);
            seen.extend(data);
        }
        Picture {
            slots: self.guest.slots(),
            delivered: self.guest.delivered().into_iter().collect(),
            active: irqs.active,
            bound: irqs.bound,
            pins: self.guest.pins(),
            resampled: irqs.unmasks,
            config: [real, seen],
        }
    }

    /// Drops the function, and returns the other parts.
    pub fn end(self) -> Parts {
        let Self { faults, iommu, device, guest, function } = self;
        drop(function);
        Parts { faults, iommu, device, guest }
    }
}
