//! Descriptions of hosts and devices.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use vfio_bindings::bindings::vfio as sys;

use crate::address::PciAddress;
use crate::errno::errno;
use crate::info::put;
use crate::kernel::Kernel;
use crate::ranges;
use crate::spans::{self, Span};

/// The driver of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// No driver.
    None,
    /// `vfio-pci`.
    Vfio,
    /// `pci-stub`, which reserves a device and does not use it.
    Stub,
    /// `pcieport`, the driver of a bridge.
    Bridge,
    /// Any other driver of the host.
    Host,
}

/// The state of a device after a reset that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReset {
    /// The device does not respond: it reads as all-ones.
    Absent,
    /// A device that did not respond does so again.
    Present,
    /// The device is in D3hot.
    InD3hot,
    /// The device has another revision: it started with other firmware.
    OtherRevision(u8),
}

/// A region of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// The size in bytes; 0 for a region that does not exist.
    pub size: u64,
    /// `VFIO_REGION_INFO_FLAG_*` without `VFIO_REGION_INFO_FLAG_CAPS`.
    pub flags: u32,
    /// Whether the region holds the MSI-X table and can still be mapped (the capability
    /// `MSIX_MAPPABLE`).
    pub msix_mappable: bool,
    /// The parts that can be mapped, where the whole region cannot (the capability `SPARSE_MMAP`).
    pub sparse: Option<Vec<Range<u64>>>,
}

/// A PCI function, and what vfio-pci reports about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciFunction {
    /// The regions by index. Indexes beyond the end are EINVAL.
    pub regions: Vec<Region>,
    /// Whether the function has an interrupt pin.
    pub intx: bool,
    /// The number of MSI vectors, a power of two; 0 without MSI.
    pub msi: u32,
    /// The size of its MSI-X table; 0 without MSI-X.
    pub msix: u32,
    /// Whether the function is PCI Express. Before 7.3, only such functions have the error interrupt.
    pub express: bool,
    /// Whether the function has a function-level reset.
    pub resets: bool,
    /// Config space at power-on. Missing bytes up to the end of the region are zero.
    pub config: Vec<u8>,
    /// Read-only zero bits of config space: the offset of a byte, and its bits.
    pub zeros: Vec<(u64, u8)>,
}

const MMAP: u32 = sys::VFIO_REGION_INFO_FLAG_MMAP;
const READ_WRITE: u32 = sys::VFIO_REGION_INFO_FLAG_READ | sys::VFIO_REGION_INFO_FLAG_WRITE;

impl PciFunction {
    /// A function with this config space, without interrupts and reset. `bars` has the sizes of
    /// BAR0 to BAR5 and the ROM, each of which can be mapped.
    pub fn new(config: Vec<u8>, bars: &[u64]) -> Self {
        let region = |size: u64| match size {
            0 => Region::default(),
            _ => Region { size, flags: READ_WRITE | MMAP, ..Region::default() },
        };
        let sizes = bars.iter().copied().chain(std::iter::repeat(0));
        let sizes = sizes.take(sys::VFIO_PCI_CONFIG_REGION_INDEX as usize);
        let config_size = config.len() as u64;
        let config_region = Region { size: config_size, flags: READ_WRITE, ..Region::default() };
        let regions = sizes.map(region).chain([config_region]).collect();
        Self { regions, config, ..Self::default() }
    }

    /// An NVMe controller: 16 KiB of registers with the MSI-X table, 65 vectors, a function-level
    /// reset.
    pub fn nvme() -> Self {
        let function = Self::new(nvme_config(), &[16 << 10]);
        let mut nvme = Self { intx: true, msix: 65, express: true, resets: true, ..function };
        nvme.regions.iter_mut().take(1).for_each(|bar0| bar0.msix_mappable = true);
        nvme
    }

    /// A conventional NIC: 128 KiB of registers, an interrupt pin, no function-level reset.
    pub fn nic() -> Self {
        Self { intx: true, ..Self::new(vec![0; 256], &[128 << 10]) }
    }

    /// The number of vectors of an index.
    pub(crate) fn vectors(&self, index: u32, kernel: Kernel) -> u32 {
        match index {
            sys::VFIO_PCI_INTX_IRQ_INDEX => self.intx.into(),
            sys::VFIO_PCI_MSI_IRQ_INDEX => self.msi,
            sys::VFIO_PCI_MSIX_IRQ_INDEX => self.msix,
            sys::VFIO_PCI_ERR_IRQ_INDEX => self.has_error_interrupt(kernel).into(),
            sys::VFIO_PCI_REQ_IRQ_INDEX => 1,
            _ => 0,
        }
    }

    pub(crate) fn has_error_interrupt(&self, kernel: Kernel) -> bool {
        self.express || kernel.reports_errors_of_all()
    }
}

/// Capabilities: MSI-X of 65 vectors at 0x40, with the table at 0x2000 and the PBA at 0x3000 of
/// BAR0; PCI Express with FLR at 0x80; power management at 0x60.
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
    let mut config = vec![0; 0x1000];
    parts.iter().for_each(|(offset, bytes)| put(&mut config, *offset, bytes));
    config
}

/// A device of the description.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub group: u32,
    pub driver: Driver,
    pub function: PciFunction,
}

/// Describes a host, from which [`build`](Self::build) makes a [`System`](crate::System).
#[derive(Clone, Debug)]
pub struct Description {
    /// The kernel whose rules the system follows.
    pub kernel: Kernel,
    /// Whether the process has `CAP_SYS_RAWIO`, which groups without an IOMMU need.
    pub raw_io: bool,
    /// Whether the process has `CAP_SYS_RESOURCE`, which the iommufd's mode of locked memory needs.
    pub resource: bool,
    /// Whether the kernel has `/dev/iommu` and character devices of devices
    /// (`CONFIG_VFIO_DEVICE_CDEV`).
    pub iommufd: bool,
    /// Whether the kernel makes mock devices of iommufd (`CONFIG_IOMMUFD_TEST`).
    pub mock_devices: bool,
    /// The parameter `enable_unsafe_noiommu_mode` of vfio.
    pub noiommu_mode: bool,
    /// `RLIMIT_MEMLOCK` in bytes; `None` with `CAP_IPC_LOCK`.
    pub locked_memory: Option<u64>,
    /// The parameter `dma_entry_limit` of type1.
    pub dma_entries: u32,
    /// The IOVA ranges that the IOMMU translates, without the MSI window. An end of 2^64 - 1 stands
    /// for 2^64.
    pub iova_ranges: Vec<Range<u64>>,
    /// Whether the host's interrupt controller can add vectors to MSI-X while it is enabled, on a
    /// kernel that can. The GIC's ITS cannot on Linux 6.12.
    pub grows_msix: bool,
    /// The interrupt vectors that the host has for all devices.
    pub host_vectors: u32,
    /// Whether the kernel knows how many vectors the host has when MSI or MSI-X is enabled with
    /// more ([`FewerVectors`](crate::FewerVectors)). On x86, vectors of the CPUs are allocated when
    /// the interrupts are requested (`request_irq`), and a lack of them is ENOSPC.
    pub counts_vectors: bool,
    /// The IOMMU's page sizes, one bit each.
    pub page_sizes: u64,
    /// Whether the IOMMU remaps interrupts. Without, `VFIO_SET_IOMMU` is EPERM.
    pub interrupt_remapping: bool,
    /// Whether the IOMMU enforces cache coherency (`VFIO_DMA_CC_IOMMU`).
    pub coherent: bool,
    /// The errno with which `VFIO_TYPE1_NESTING_IOMMU` is refused; `None` if type1 can be set so. It
    /// is `EINVAL` for an IOMMU without nesting, and `EPERM` for an SMMUv3 of Linux 6.12, whose
    /// domains are complete when they are made (`arm_smmu_enable_nesting`).
    pub nesting_error: Option<i32>,
    /// The process's memory that can be pinned, and whether it is writable.
    pub memory: Vec<(Range<u64>, bool)>,
    /// The first IOVA of the IOMMU's page tables.
    pub(crate) first_iova: u64,
    pub(crate) functions: BTreeMap<PciAddress, Entry>,
    pub(crate) noiommu: BTreeSet<u32>,
    pub(crate) reserved: Vec<(u32, Range<u64>)>,
    /// Groups that share a container with no other.
    pub(crate) alone: BTreeSet<u32>,
    /// The functions on each bus that can be reset.
    pub(crate) buses: Vec<BTreeSet<PciAddress>>,
    /// The virtual functions that vfio-pci made of each physical function.
    pub(crate) sr_iov: BTreeMap<PciAddress, BTreeSet<PciAddress>>,
}

impl Description {
    /// A host without devices: its IOMMU translates 39 bits without the MSI window, in pages of
    /// 4 KiB and 2 MiB. The process has all capabilities and the whole address space of a user.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            raw_io: true,
            resource: true,
            iommufd: kernel.has_iommufd(),
            mock_devices: false,
            noiommu_mode: false,
            locked_memory: None,
            dma_entries: 65535,
            iova_ranges: vec![0..0xfee0_0000, 0xfef0_0000..1 << 39],
            grows_msix: true,
            host_vectors: u32::MAX,
            counts_vectors: true,
            page_sizes: 4096 | 2 << 20,
            interrupt_remapping: true,
            coherent: false,
            nesting_error: None,
            memory: vec![(4096..(1 << 47) - 4096, true)],
            first_iova: 0,
            functions: BTreeMap::new(),
            noiommu: BTreeSet::new(),
            reserved: Vec::new(),
            alone: BTreeSet::new(),
            buses: Vec::new(),
            sr_iov: BTreeMap::new(),
        }
    }

    /// Whether vectors can be added to MSI-X while it is enabled: no `NORESIZE`.
    #[must_use]
    pub fn can_grow_msix(&self) -> bool {
        self.grows_msix && self.kernel.grows_msix()
    }

    /// Adds a device in a group.
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

    /// Makes a group one without an IOMMU, as vfio's noiommu mode does.
    #[must_use]
    pub fn without_iommu(mut self, group: u32) -> Self {
        self.noiommu.insert(group);
        self
    }

    /// Reserves an IOVA range of a group.
    #[must_use]
    pub fn reserved(mut self, group: u32, range: Range<u64>) -> Self {
        self.reserved.push((group, range));
        self
    }

    /// Makes a group one that can share a container's IOMMU with no other group (EINVAL), as a
    /// group behind another kind of IOMMU.
    #[must_use]
    pub fn alone(mut self, group: u32) -> Self {
        self.alone.insert(group);
        self
    }

    /// Adds a bus that can be reset, with all functions on it. A function on none of these is on a
    /// root bus, which cannot be reset.
    #[must_use]
    pub fn bus(mut self, members: impl IntoIterator<Item = PciAddress>) -> Self {
        self.buses.push(members.into_iter().collect());
        self
    }

    /// Gives a device SR-IOV, with these virtual functions, which vfio-pci made (`enable_sriov`).
    /// They are devices of the description, too, and are opened with a VF token. A virtual function
    /// that another driver made needs none: it is not listed here.
    #[must_use]
    pub fn virtual_functions(
        mut self,
        physical: PciAddress,
        virtuals: impl IntoIterator<Item = PciAddress>,
    ) -> Self {
        self.sr_iov.insert(physical, virtuals.into_iter().collect());
        self
    }

    /// Whether a device of a group has this driver.
    pub fn has_driver(&self, group: u32, driver: Driver) -> bool {
        let mut entries = self.functions.values();
        entries.any(|entry| entry.group == group && entry.driver == driver)
    }

    /// `ENOENT`: the kernel has no iommufd.
    pub(crate) fn check_iommufd(&self) -> io::Result<()> {
        match self.iommufd {
            true => Ok(()),
            false => Err(errno(libc::ENOENT)),
        }
    }

    /// The IOMMU's smallest page.
    pub(crate) fn smallest_page(&self) -> u64 {
        self.page_sizes & self.page_sizes.wrapping_neg()
    }

    /// The IOVAs of the IOMMU's page tables; `None` without a limit.
    pub(crate) fn aperture(&self) -> Option<Span> {
        let last = ranges::last(self.iova_ranges.last()?);
        Some(Span { first: self.first_iova, last })
    }

    /// The IOVAs that a device of a group reserves: the MSI window and the group's own.
    pub(crate) fn reserved_spans(&self, group: u32) -> Vec<Span> {
        let span = |range: &Range<u64>| Span { first: range.start, last: ranges::last(range) };
        let usable = self.iova_ranges.iter().map(span);
        let own = self.reserved.iter().filter(|(owner, _)| *owner == group);
        let holes = self.aperture().map(|aperture| spans::holes(aperture, usable));
        let own = own.map(|(_, range)| span(range));
        holes.into_iter().flatten().chain(own).collect()
    }

    /// Whether groups can share the IOMMU of a container.
    pub(crate) fn can_share(&self, groups: &[u32]) -> bool {
        groups.len() < 2 || !groups.iter().any(|group| self.alone.contains(group))
    }
}
