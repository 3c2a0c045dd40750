//! A device behind vfio-pci.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use vfio_bindings::bindings::vfio::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};
use vmm_sys_util::eventfd::EventFd;

use super::{Call, Faults, errno, lock};
use crate::address::ByteRange;
use crate::backend::{
    Device, DeviceFlags, IrqFlags, IrqInfo, RegionFlags, RegionInfo, RegionMmap, SetIrqs, file_position,
};

/// The size of the file range that each region has.
const REGION_STRIDE: u64 = 1 << 24;

/// What is bound to the MSI-X vectors of a device.
#[derive(Clone, Debug, Default)]
pub struct IrqsState {
    /// MSI-X is on.
    pub enabled: bool,
    /// The eventfd of each vector, up to the last that was ever given one.
    pub eventfds: Vec<Option<Arc<EventFd>>>,
}

impl IrqsState {
    /// How many vectors have an eventfd.
    pub fn bound(&self) -> usize {
        self.eventfds.iter().flatten().count()
    }
}

/// A PCI function in memory: its regions lie one after the other in a file, as vfio-pci has them.
pub struct PciDevice {
    faults: Arc<Faults>,
    file: File,
    regions: Vec<RegionInfo>,
    msix: IrqInfo,
    power_on: Vec<u8>,
    irqs: Mutex<IrqsState>,
}

impl PciDevice {
    /// Something like QEMU's NVMe: BAR0 with registers, MSI-X table (65 vectors) and pending bits; PCI Express and
    /// power management.
    ///
    /// # Errors
    ///
    /// No file could be made for the device's memory.
    pub fn nvme(faults: Arc<Faults>, msix: IrqFlags) -> io::Result<Self> {
        let mut config = vec![0; 0x1000];
        let mut put = |offset: usize, bytes: &[u8]| {
            config
                .iter_mut()
                .skip(offset)
                .zip(bytes)
                .for_each(|(old, new)| *old = *new);
        };
        put(0x00, &[0x36, 0x1b, 0x10, 0x00, 0, 0, 0x10, 0, 2, 2, 8, 1]);
        put(0x10, &[4]);
        put(0x34, &[0x40]);
        put(0x40, &[0x11, 0x80, 64, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
        put(0x60, &[0x01, 0, 3, 0]);
        put(0x80, &[0x10, 0x60, 2, 0]);
        Self::new(
            faults,
            config,
            &[0x4000],
            IrqInfo {
                index: VFIO_PCI_MSIX_IRQ_INDEX,
                flags: msix,
                count: 65,
            },
        )
    }

    /// A function with this config space, and with BAR regions of these sizes, from BAR0 on.
    ///
    /// # Errors
    ///
    /// No file could be made for the device's memory.
    pub fn new(faults: Arc<Faults>, config: Vec<u8>, bars: &[u64], msix: IrqInfo) -> io::Result<Self> {
        let flags = RegionFlags::READ | RegionFlags::WRITE;
        let region = |index: u32| {
            let bar = usize::try_from(index)
                .ok()
                .and_then(|index| bars.get(index))
                .copied();
            let is_config = index == VFIO_PCI_CONFIG_REGION_INDEX;
            let size = if is_config {
                config.len() as u64
            } else {
                bar.unwrap_or(0)
            };
            let flags = if is_config {
                flags
            } else {
                flags | RegionFlags::MMAP
            };
            let file_offset = u64::from(index).saturating_mul(REGION_STRIDE);
            RegionInfo {
                index,
                flags,
                size,
                file_offset,
                ..RegionInfo::default()
            }
        };
        let regions: Vec<_> = (0..=VFIO_PCI_CONFIG_REGION_INDEX).map(region).collect();
        let file = tempfile::tempfile()?;
        file.set_len(REGION_STRIDE.saturating_mul(regions.len() as u64))?;
        let device = Self {
            faults,
            file,
            regions,
            msix,
            power_on: config,
            irqs: Mutex::default(),
        };
        device.power_on()?;
        Ok(device)
    }

    /// What is bound to the MSI-X vectors.
    pub fn irqs(&self) -> IrqsState {
        lock(&self.irqs).clone()
    }

    /// Bytes of the real config space, which the guest does not see all of.
    ///
    /// # Errors
    ///
    /// The offset is out of range.
    pub fn config(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let region = self.find(VFIO_PCI_CONFIG_REGION_INDEX)?;
        self.file
            .read_exact_at(data, file_position(region, offset, data.len())?)
    }

    /// The device fires a vector: its eventfd is signalled, if it has one.
    ///
    /// # Errors
    ///
    /// The eventfd could not be written.
    pub fn raise(&self, vector: u16) -> io::Result<()> {
        let irqs = lock(&self.irqs);
        let eventfd = irqs.eventfds.get(usize::from(vector)).and_then(Option::as_ref);
        eventfd.map_or(Ok(()), |eventfd| eventfd.write(1))
    }

    fn power_on(&self) -> io::Result<()> {
        let config = self.find(VFIO_PCI_CONFIG_REGION_INDEX)?;
        self.file.write_all_at(&self.power_on, config.file_offset)
    }

    fn find(&self, index: u32) -> io::Result<&RegionInfo> {
        self.regions
            .iter()
            .find(|region| region.index == index)
            .ok_or_else(|| errno(libc::EINVAL))
    }
}

impl Device for PciDevice {
    fn flags(&self) -> DeviceFlags {
        DeviceFlags::PCI | DeviceFlags::RESET
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.faults.pass(Call::RegionInfo)?;
        self.find(index).cloned()
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.faults.pass(Call::IrqInfo)?;
        Ok(if index == self.msix.index {
            self.msix
        } else {
            IrqInfo {
                index,
                ..IrqInfo::default()
            }
        })
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.faults.pass(Call::Read)?;
        self.file
            .read_exact_at(data, file_position(region, offset, data.len())?)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        self.faults.pass(Call::Write)?;
        self.file
            .write_all_at(data, file_position(region, offset, data.len())?)
    }

    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap> {
        self.faults.pass(Call::Mmap)?;
        let length = usize::try_from(range.size()).map_err(|_| errno(libc::EINVAL))?;
        let position = file_position(region, range.start(), length)?;
        RegionMmap::new(
            self.clone(),
            self.file.as_fd(),
            position,
            range.start(),
            range.size(),
        )
    }

    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        self.faults.pass(Call::SetIrqs)?;
        let mut irqs = lock(&self.irqs);
        match call {
            SetIrqs::Trigger {
                index,
                start,
                eventfds,
            } => {
                let end = usize::try_from(start)
                    .ok()
                    .and_then(|start| start.checked_add(eventfds.len()));
                let end =
                    end.filter(|end| index == self.msix.index && *end as u64 <= u64::from(self.msix.count));
                let end = end.ok_or_else(|| errno(libc::EINVAL))?;
                // Once MSI-X is on, vectors beyond those it was turned on with need the dynamic kind (vfio_msi_set_block).
                let grows = irqs.enabled && end > irqs.eventfds.len();
                if grows && self.msix.flags.contains(IrqFlags::NORESIZE) {
                    return Err(errno(libc::EINVAL));
                }
                let length = irqs.eventfds.len().max(end);
                irqs.eventfds.resize(length, None);
                irqs.enabled = true;
                let start = end.saturating_sub(eventfds.len());
                irqs.eventfds
                    .iter_mut()
                    .skip(start)
                    .zip(eventfds)
                    .for_each(|(old, new)| old.clone_from(new));
            }
            SetIrqs::Disable { .. } => *irqs = IrqsState::default(),
        }
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.faults.pass(Call::Reset)?;
        self.power_on()
    }
}
