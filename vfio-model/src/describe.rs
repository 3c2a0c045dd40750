//! What a system is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use vfio_bindings::bindings::vfio as sys;

use crate::PciAddress;
use crate::info::put;
use crate::{Kernel, System};

/// The driver that has a device.
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// In bytes; 0 for one that is not there.
    pub size: u64,
    /// `VFIO_REGION_INFO_FLAG_*`, without the one for capabilities.
    pub flags: u32,
    /// Whether the MSI-X table is in it and may be mapped (the capability `MSIX_MAPPABLE`).
    pub msix_mappable: bool,
    /// The parts of it that can be mapped, where not all of it can (the capability `SPARSE_MMAP`).
    pub sparse: Option<Vec<Range<u64>>>,
}

/// A PCI function: what it is, and what vfio-pci reports of it.
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
    /// Its config space at power-on; zeros from the end of this to the end of the region.
    pub config: Vec<u8>,
    /// Bits of bytes of config space, by offset, that are zero whatever is written.
    pub zeros: Vec<(u64, u8)>,
}

const MMAP: u32 = sys::VFIO_REGION_INFO_FLAG_MMAP;
const READ_WRITE: u32 = sys::VFIO_REGION_INFO_FLAG_READ | sys::VFIO_REGION_INFO_FLAG_WRITE;

impl PciFunction {
    /// An NVMe: 16 KiB of registers that hold the MSI-X table, 65 vectors, a function-level reset.
    pub fn nvme() -> Self {
        let bar0 =
            Region { size: 16 << 10, flags: READ_WRITE | MMAP, msix_mappable: true, sparse: None };
        Self {
            regions: with_config(bar0, 4096),
            intx: true,
            msi: 0,
            msix: 65,
            express: true,
            resets: true,
            config: nvme_config(),
            zeros: Vec::new(),
        }
    }

    /// A conventional NIC: 128 KiB of registers, a pin, no reset of its own.
    pub fn nic() -> Self {
        let bar0 = Region {
            size: 128 << 10,
            flags: READ_WRITE | MMAP,
            msix_mappable: false,
            sparse: None,
        };
        Self { regions: with_config(bar0, 256), intx: true, ..Self::default() }
    }

    /// How many interrupts an index has.
    pub(crate) fn vectors(&self, index: u32) -> u32 {
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
    let config = Region { size: config_size, flags: READ_WRITE, ..Region::default() };
    let mut regions = vec![Region::default(); sys::VFIO_PCI_CONFIG_REGION_INDEX as usize];
    if let Some(first) = regions.first_mut() {
        *first = bar0;
    }
    regions.push(config);
    regions
}

/// Capabilities: MSI-X at 0x40, of 65 vectors, with the table at 0x2000 and the pending bits at
/// 0x3000 of BAR0; PCI Express with FLR at 0x80; power management at 0x60.
fn nvme_config() -> Vec<u8> {
    let parts: [(usize, &[u8]); 7] = [
        (0x00, &[0x36, 0x1b, 0x10, 0x00, 0, 0, 0x10, 0, 2, 2, 8, 1]),
        (0x10, &[4]),
        (0x34, &[0x40]),
        (0x3d, &[1]),
        (0x40, &[0x11, 0x80, 64, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]),
        (0x60, &[0x01, 0, 3, 0]),
        (0x80, &[0x10, 0x60, 2, 0, 0, 0, 0, 0x10]),
    ];
    let mut config = vec![0; 0x100];
    parts.iter().for_each(|(offset, bytes)| put(&mut config, *offset, bytes));
    config
}

/// A device in the description.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub group: u32,
    pub driver: Driver,
    pub function: PciFunction,
}

/// What a [`System`] is made of. [`Description::new`] has no devices and the usual rest; all of it
/// can be set.
#[derive(Clone, Debug)]
pub struct Description {
    /// Whose rules it follows.
    pub kernel: Kernel,
    /// Whether the process has `CAP_SYS_RAWIO`, without which there is no access to groups without
    /// an IOMMU.
    pub raw_io: bool,
    /// vfio's parameter `enable_unsafe_noiommu_mode`.
    pub noiommu_mode: bool,
    /// The limit of locked memory in bytes, `RLIMIT_MEMLOCK`; `None` with `CAP_IPC_LOCK`.
    pub locked_memory: Option<u64>,
    /// type1's parameter `dma_entry_limit`.
    pub dma_entries: u32,
    /// What the IOMMU translates, less what is reserved in every group (the MSI window).
    pub reach: Vec<Range<u64>>,
    /// The IOMMU's page sizes, a bit each.
    pub page_sizes: u64,
    /// Whether the IOMMU remaps interrupts; without, no IOMMU can be set (EPERM).
    pub interrupt_remapping: bool,
    /// Whether the IOMMU enforces cache coherency (`VFIO_DMA_CC_IOMMU`).
    pub coherent: bool,
    /// Whether type1 can be set as `VFIO_TYPE1_NESTING_IOMMU`.
    pub nesting: bool,
    /// The process's memory that can be pinned, with whether it can be written.
    pub memory: Vec<(Range<u64>, bool)>,
    pub(crate) functions: BTreeMap<PciAddress, Entry>,
    pub(crate) noiommu: BTreeSet<u32>,
    pub(crate) reserved: Vec<(u32, Range<u64>)>,
    /// Groups that share a container with no other.
    pub(crate) alone: BTreeSet<u32>,
    /// What resets of buses reach.
    pub(crate) buses: Vec<BTreeSet<PciAddress>>,
}

impl Description {
    /// No devices. An IOMMU of 39 bits with the MSI window left out, 4 KiB and 2 MiB pages; a
    /// process with all capabilities, and all of the memory that a user can have.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            raw_io: true,
            noiommu_mode: false,
            locked_memory: None,
            dma_entries: 65535,
            reach: vec![0..0xfee0_0000, 0xfef0_0000..1 << 39],
            page_sizes: 4096 | 2 << 20,
            interrupt_remapping: true,
            coherent: false,
            nesting: true,
            memory: vec![(4096..(1 << 47) - 4096, true)],
            functions: BTreeMap::new(),
            noiommu: BTreeSet::new(),
            reserved: Vec::new(),
            alone: BTreeSet::new(),
            buses: Vec::new(),
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

    /// With a group that has no IOMMU, as the noiommu mode makes them; its devices are added as
    /// others are.
    #[must_use]
    pub fn without_iommu(mut self, group: u32) -> Self {
        self.noiommu.insert(group);
        self
    }

    /// With addresses that the devices of a group cannot use.
    #[must_use]
    pub fn reserved(mut self, group: u32, range: Range<u64>) -> Self {
        self.reserved.push((group, range));
        self
    }

    /// With a group that shares the IOMMU of a container with no other (EINVAL), as those behind
    /// another kind of IOMMU.
    #[must_use]
    pub fn alone(mut self, group: u32) -> Self {
        self.alone.insert(group);
        self
    }

    /// With a bus, a reset of which reaches all of these functions. A function without such a bus
    /// has it to the root, which cannot be reset.
    #[must_use]
    pub fn bus(mut self, members: impl IntoIterator<Item = PciAddress>) -> Self {
        self.buses.push(members.into_iter().collect());
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
