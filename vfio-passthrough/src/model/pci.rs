//! A device behind vfio-pci.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;
use vmm_sys_util::eventfd::EventFd;

use super::{Call, Faults, errno, lock};
use crate::address::ByteRange;
use crate::backend::{
    BusMember, Device, DeviceFlags, IrqFlags, IrqInfo, RegionFlags, RegionInfo, RegionMmap, SetIrqs,
    file_position,
};
use crate::irq::binding::Kind;

/// The size of the file range that each region has.
const REGION_STRIDE: u64 = 1 << 36;

/// What is bound to the interrupts of a device.
#[derive(Clone, Debug, Default)]
pub struct IrqsState {
    /// The index that is on; they exclude one another.
    pub active: Option<u32>,
    /// The eventfd of each of its vectors, up to the last that was ever given one.
    pub eventfds: Vec<Option<Arc<EventFd>>>,
    /// What unmasks INTx.
    pub resample: Option<Arc<EventFd>>,
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
    irq_infos: Vec<IrqInfo>,
    power_on: Vec<u8>,
    irqs: Mutex<IrqsState>,
    flags: DeviceFlags,
    /// Bits of config space that read zero whatever is written, by offset.
    zeros: Vec<(u64, u8)>,
    /// What is on its bus; nothing where the bus cannot be reset.
    bus: Vec<BusMember>,
}

impl PciDevice {
    /// Something like QEMU's NVMe: BAR0 with registers, MSI-X table (65 vectors) and pending bits; an INTx
    /// pin, PCI Express and power management.
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
        put(0x3d, &[1]);
        put(0x40, &[0x11, 0x80, 64, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
        put(0x60, &[0x01, 0, 3, 0]);
        put(0x80, &[0x10, 0x60, 2, 0, 0, 0, 0, 0x10]);
        let intx = IrqInfo {
            index: Kind::Intx.index(),
            flags: IrqFlags::EVENTFD | IrqFlags::AUTOMASKED,
            count: 1,
        };
        let msix = IrqInfo {
            index: Kind::Msix.index(),
            flags: msix,
            count: 65,
        };
        Self::new(faults, config, &[0x4000], vec![intx, msix])
    }

    /// A function with this config space, and with regions of these sizes: of BAR0 to BAR5 and the ROM.
    ///
    /// # Errors
    ///
    /// No file could be made for the device's memory.
    pub fn new(faults: Arc<Faults>, config: Vec<u8>, bars: &[u64], irqs: Vec<IrqInfo>) -> io::Result<Self> {
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
            irq_infos: irqs,
            power_on: config,
            irqs: Mutex::default(),
            flags: DeviceFlags::PCI | DeviceFlags::RESET,
            zeros: Vec::new(),
            bus: Vec::new(),
        };
        device.power_on()?;
        Ok(device)
    }

    /// One without a reset of its own, on a bus with these functions; a bus without any cannot be reset.
    pub fn without_reset(self, bus: Vec<BusMember>) -> Self {
        let flags = self.flags.difference(DeviceFlags::RESET);
        Self { flags, bus, ..self }
    }

    /// One where bits of a byte of config space are zero whatever is written.
    pub fn with_zeros(mut self, offset: u64, bits: u8) -> Self {
        self.zeros.push((offset, bits));
        self
    }

    /// One that describes a region in another way.
    pub fn with_region(mut self, index: u32, change: impl FnOnce(&mut RegionInfo)) -> Self {
        let mut regions = self.regions.iter_mut();
        if let Some(region) = regions.find(|region| region.index == index) {
            change(region);
        }
        self
    }

    /// What is bound to its interrupts.
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

    fn find_irq(&self, index: u32) -> IrqInfo {
        let known = self.irq_infos.iter().find(|info| info.index == index);
        known.copied().unwrap_or(IrqInfo {
            index,
            ..IrqInfo::default()
        })
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

/// The rules of vfio_pci_set_msi_trigger and vfio_pci_set_intx_trigger.
fn trigger(
    irqs: &mut IrqsState,
    info: IrqInfo,
    start: u32,
    eventfds: &[Option<Arc<EventFd>>],
) -> io::Result<()> {
    let start = usize::try_from(start).map_err(|_| errno(libc::EINVAL))?;
    let end = start.saturating_add(eventfds.len());
    let other = irqs.active.is_some_and(|active| active != info.index);
    // Once it is on, vectors beyond those it was turned on with need the kind that can grow.
    let grows = irqs.active.is_some() && end > irqs.eventfds.len();
    if other || end as u64 > u64::from(info.count) || grows && info.flags.contains(IrqFlags::NORESIZE) {
        return Err(errno(libc::EINVAL));
    }
    let length = irqs.eventfds.len().max(end);
    irqs.eventfds.resize(length, None);
    irqs.active = Some(info.index);
    irqs.eventfds
        .iter_mut()
        .skip(start)
        .zip(eventfds)
        .for_each(|(old, new)| old.clone_from(new));
    Ok(())
}

impl Device for PciDevice {
    fn flags(&self) -> DeviceFlags {
        self.flags
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.faults.pass(Call::RegionInfo)?;
        self.find(index).cloned()
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.faults.pass(Call::IrqInfo)?;
        Ok(self.find_irq(index))
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.faults.pass(Call::Read)?;
        self.file
            .read_exact_at(data, file_position(region, offset, data.len())?)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        self.faults.pass(Call::Write)?;
        let mut data = data.to_vec();
        if region.index == VFIO_PCI_CONFIG_REGION_INDEX {
            for (byte, at) in data.iter_mut().zip(offset..) {
                let zeros = self.zeros.iter().filter(|(offset, _)| *offset == at);
                zeros.for_each(|(_, bits)| *byte &= !bits);
            }
        }
        self.file
            .write_all_at(&data, file_position(region, offset, data.len())?)
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
            } => trigger(&mut irqs, self.find_irq(index), start, eventfds),
            SetIrqs::UnmaskOn { index, eventfd } if irqs.active == Some(index) => {
                irqs.resample = Some(eventfd.clone());
                Ok(())
            }
            SetIrqs::Disable { index } if irqs.active.is_none_or(|active| active == index) => {
                *irqs = IrqsState::default();
                Ok(())
            }
            _ => Err(errno(libc::EINVAL)),
        }
    }

    fn reset(&self) -> io::Result<()> {
        self.faults.pass(Call::Reset)?;
        match self.flags.contains(DeviceFlags::RESET) {
            true => self.power_on(),
            // vfio_pci_ioctl_reset.
            false => Err(errno(libc::EINVAL)),
        }
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        self.faults.pass(Call::BusMembers)?;
        match self.bus.as_slice() {
            [] => Err(errno(libc::ENODEV)),
            members => Ok(members.to_vec()),
        }
    }

    fn reset_bus(&self) -> io::Result<()> {
        self.faults.pass(Call::ResetBus)?;
        match self.bus.iter().all(|member| member.ours) {
            true if !self.bus.is_empty() => self.power_on(),
            _ => Err(errno(libc::EINVAL)),
        }
    }
}
