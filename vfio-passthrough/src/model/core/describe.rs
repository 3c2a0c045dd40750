//! What a system is made of.

use std::collections::{BTreeMap, BTreeSet};

use vfio_bindings::bindings::vfio as sys;

use super::{Kernel, System};
use crate::address::{ByteRange, PciAddress};

/// Who has a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Nobody.
    None,
    /// `vfio-pci`.
    Vfio,
    /// `pci-stub`, which keeps a device from other drivers and does nothing with it.
    Stub,
    /// A bridge's, `pcieport`: an interconnect, not an endpoint.
    Bridge,
    /// A driver of the host's.
    Host,
}

/// A region of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// In bytes; 0 for one that is not there.
    pub size: u64,
    /// `VFIO_REGION_INFO_FLAG_*`, without the one for capabilities.
    pub flags: u32,
    /// Whether the MSI-X table is in it and may be mapped (the capability `MSIX_MAPPABLE`).
    pub msix_mappable: bool,
}

/// What vfio-pci tells of a PCI function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciFunction {
    /// By index; what is beyond the end does not exist (EINVAL).
    pub regions: Vec<Region>,
    /// Whether it has an interrupt pin.
    pub intx: bool,
    /// How many MSI vectors it has, a power of two; 0 without MSI.
    pub msi: u32,
    /// The size of its MSI-X table; 0 without MSI-X.
    pub msix: u32,
    /// Whether it is PCI Express: such a function has the error interrupt.
    pub express: bool,
    /// Whether it can be reset by itself.
    pub resets: bool,
}

const MMAP: u32 = sys::VFIO_REGION_INFO_FLAG_MMAP;
const READ_WRITE: u32 = sys::VFIO_REGION_INFO_FLAG_READ | sys::VFIO_REGION_INFO_FLAG_WRITE;

impl PciFunction {
    /// An NVMe: 16 KiB of registers that hold the MSI-X table, 65 vectors, a function-level reset.
    pub fn nvme() -> Self {
        let bar0 = Region { size: 16 << 10, flags: READ_WRITE | MMAP, msix_mappable: true };
        Self {
            regions: with_config(bar0, 4096),
            intx: true,
            msi: 0,
            msix: 65,
            express: true,
            resets: true,
        }
    }

    /// A conventional NIC: 128 KiB of registers, a pin, no reset of its own.
    pub fn nic() -> Self {
        let bar0 = Region { size: 128 << 10, flags: READ_WRITE | MMAP, msix_mappable: false };
        Self { regions: with_config(bar0, 256), intx: true, ..Self::default() }
    }

    /// How many interrupts an index has.
    pub(super) fn vectors(&self, index: u32) -> u32 {
        match index {
            sys::VFIO_PCI_INTX_IRQ_INDEX => self.intx.into(),
            sys::VFIO_PCI_MSI_IRQ_INDEX => self.msi,
            sys::VFIO_PCI_MSIX_IRQ_INDEX => self.msix,
            sys::VFIO_PCI_ERR_IRQ_INDEX => self.express.into(),
            sys::VFIO_PCI_REQ_IRQ_INDEX => 1,
            _ => 0,
        }
    }
}

/// BAR0, five that are not there, no ROM, and the config space.
fn with_config(bar0: Region, config_size: u64) -> Vec<Region> {
    let config = Region { size: config_size, flags: READ_WRITE, msix_mappable: false };
    let mut regions = vec![Region::default(); sys::VFIO_PCI_CONFIG_REGION_INDEX as usize];
    if let Some(first) = regions.first_mut() {
        *first = bar0;
    }
    regions.push(config);
    regions
}

/// A device in the description.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub group: u32,
    pub driver: Driver,
    pub function: PciFunction,
}

/// What a [`System`] is made of. [`Description::new`] has no devices and the usual rest; all of it can be set.
#[derive(Clone, Debug)]
pub struct Description {
    /// Whose rules it follows.
    pub kernel: Kernel,
    /// Whether the process has `CAP_SYS_RAWIO`, without which there is no access to groups without an IOMMU.
    pub raw_io: bool,
    /// vfio's parameter `enable_unsafe_noiommu_mode`.
    pub noiommu_mode: bool,
    /// The limit of locked memory in bytes, `RLIMIT_MEMLOCK`; `None` with `CAP_IPC_LOCK`.
    pub locked_memory: Option<u64>,
    /// type1's parameter `dma_entry_limit`.
    pub dma_entries: u32,
    /// What the IOMMU translates, less what is reserved in every group (the MSI window).
    pub reach: Vec<ByteRange>,
    /// The IOMMU's page sizes, a bit each.
    pub page_sizes: u64,
    /// Whether the IOMMU remaps interrupts; without, no IOMMU can be set (EPERM).
    pub interrupt_remapping: bool,
    /// Whether the IOMMU enforces cache coherency (`VFIO_DMA_CC_IOMMU`).
    pub coherent: bool,
    /// Whether type1 can be set as `VFIO_TYPE1_NESTING_IOMMU`.
    pub nesting: bool,
    /// The process's memory that can be pinned, with whether it can be written.
    pub memory: Vec<(ByteRange, bool)>,
    pub(super) functions: BTreeMap<PciAddress, Entry>,
    pub(super) noiommu: BTreeSet<u32>,
    pub(super) reserved: Vec<(u32, ByteRange)>,
}

impl Description {
    /// No devices. An IOMMU of 39 bits with the MSI window left out, 4 KiB and 2 MiB pages; a process with all
    /// capabilities, and all of the memory that a user can have.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            raw_io: true,
            noiommu_mode: false,
            locked_memory: None,
            dma_entries: 65535,
            reach: vec![
                ByteRange::between(0, 0xfee0_0000),
                ByteRange::between(0xfef0_0000, 1 << 39),
            ],
            page_sizes: 4096 | 2 << 20,
            interrupt_remapping: true,
            coherent: false,
            nesting: true,
            memory: vec![(ByteRange::between(4096, (1 << 47) - 4096), true)],
            functions: BTreeMap::new(),
            noiommu: BTreeSet::new(),
            reserved: Vec::new(),
        }
    }

    /// With a device, in a group.
    #[must_use]
    pub fn device(
        mut self,
        address: PciAddress,
        group: u32,
        driver: Driver,
        function: PciFunction,
    ) -> Self {
        let entry = Entry { group, driver, function };
        self.functions.insert(address, entry);
        self
    }

    /// With a group that has no IOMMU, as the noiommu mode makes them; its devices are added as others are.
    #[must_use]
    pub fn without_iommu(mut self, group: u32) -> Self {
        self.noiommu.insert(group);
        self
    }

    /// With addresses that the devices of a group cannot use.
    #[must_use]
    pub fn reserved(mut self, group: u32, range: ByteRange) -> Self {
        self.reserved.push((group, range));
        self
    }

    /// Whether a driver has a device of a group.
    pub fn has_driver(&self, group: u32, driver: Driver) -> bool {
        let mut entries = self.functions.values();
        entries.any(|entry| entry.group == group && entry.driver == driver)
    }

    /// The system, in which nothing is open.
    pub fn build(self) -> System {
        System::new(self)
    }
}
