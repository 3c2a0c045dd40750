//! A device behind vfio-pci.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

use super::decoding::Mmaps;
use super::events::Events;
use super::irqs::{IrqsState, msix_layout};
use super::{Call, Faults, errno, lock};
use crate::address::ByteRange;
use crate::backend::{
    BusMember, Device, DeviceFlags, IrqFlags, IrqInfo, RegionFlags, RegionInfo, RegionMmap,
    SetIrqs, file_position,
};
use crate::host::HostMemory as _;
use crate::irq::IrqIndex;
use crate::pci::msi::MsiLayout;
use crate::pci::msix::MsixLayout;
use crate::pci::regs::{COMMAND, Command};

/// The size of the file range that each region has.
const REGION_STRIDE: u64 = 1 << 36;

/// A PCI function in memory: its regions lie one after the other in a file, as vfio-pci has them.
pub struct PciDevice {
    pub(super) faults: Arc<Faults>,
    file: File,
    regions: Vec<RegionInfo>,
    irq_infos: Vec<IrqInfo>,
    pub(super) power_on: Vec<u8>,
    pub(super) msix: Option<MsixLayout>,
    pub(super) irqs: Mutex<IrqsState>,
    pub(super) events: Events,
    flags: DeviceFlags,
    /// Bits of config space that read zero whatever is written, by offset.
    pub(super) zeros: Vec<(u64, u8)>,
    pub(super) mmaps: Mutex<Mmaps>,
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
            config.iter_mut().skip(offset).zip(bytes).for_each(|(old, new)| *old = *new);
        };
        put(0x00, &[0x36, 0x1b, 0x10, 0x00, 0, 0, 0x10, 0, 2, 2, 8, 1]);
        put(0x10, &[4]);
        put(0x34, &[0x40]);
        put(0x3d, &[1]);
        put(0x40, &[0x11, 0x80, 64, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
        put(0x60, &[0x01, 0, 3, 0]);
        put(0x80, &[0x10, 0x60, 2, 0, 0, 0, 0, 0x10]);
        let intx = IrqInfo {
            index: IrqIndex::Intx.number(),
            flags: IrqFlags::EVENTFD | IrqFlags::AUTOMASKED,
            count: 1,
        };
        let msix = IrqInfo { index: IrqIndex::Msix.number(), flags: msix, count: 65 };
        Self::new(faults, config, &[0x4000], vec![intx, msix])
    }

    /// A function with an INTx pin, MSI of this form (message control) and MSI-X of so many vectors, where there
    /// is any: capabilities at 0x40 (MSI-X), 0x50 (MSI), 0x80 (PCI Express, with FLR); in BAR0 the table at 0x1_0000 and
    /// the pending bits at 0x1_8000.
    ///
    /// # Errors
    ///
    /// No file could be made for the device's memory.
    pub fn with_interrupts(
        faults: Arc<Faults>,
        msi: Option<u16>,
        msix: Option<(u16, IrqFlags)>,
    ) -> io::Result<Self> {
        let mut config = vec![0; 0x1000];
        let mut put = |offset: usize, bytes: &[u8]| {
            config.iter_mut().skip(offset).zip(bytes).for_each(|(old, new)| *old = *new);
        };
        put(0x00, &[0x36, 0x1b, 0x10, 0x00, 0, 0, 0x10, 0, 2, 0, 0, 2]);
        put(0x10, &[4]);
        put(0x3d, &[1]);
        put(0x80, &[0x10, 0, 2, 0, 0, 0, 0, 0x10]);
        let mut first = 0x80;
        if let Some(control) = msi {
            let [low, high] = control.to_le_bytes();
            put(0x50, &[0x05, first, low, high]);
            first = 0x50;
        }
        if let Some((vectors, _)) = msix {
            let [low, high] = vectors.saturating_sub(1).to_le_bytes();
            put(0x40, &[0x11, first, low, high, 0, 0, 1, 0, 0, 0x80, 1, 0]);
            first = 0x40;
        }
        put(0x34, &[first]);
        let irq = |kind: IrqIndex, flags, count: u16| IrqInfo {
            index: kind.number(),
            flags,
            count: count.into(),
        };
        let intx = irq(IrqIndex::Intx, IrqFlags::EVENTFD | IrqFlags::AUTOMASKED, 1);
        let fixed = IrqFlags::EVENTFD | IrqFlags::NORESIZE;
        let msi = msi.map(|control| irq(IrqIndex::Msi, fixed, MsiLayout::new(control).vectors()));
        let msix = msix.map(|(vectors, flags)| irq(IrqIndex::Msix, flags, vectors));
        let irqs = [Some(intx), msi, msix].into_iter().flatten().collect();
        Self::new(faults, config, &[0x2_0000], irqs)
    }

    /// A function with this config space, and with regions of these sizes: of BAR0 to BAR5 and the ROM.
    ///
    /// # Errors
    ///
    /// No file could be made for the device's memory.
    pub fn new(
        faults: Arc<Faults>,
        config: Vec<u8>,
        bars: &[u64],
        irqs: Vec<IrqInfo>,
    ) -> io::Result<Self> {
        let flags = RegionFlags::READ | RegionFlags::WRITE;
        let region = |index: u32| {
            let bar = usize::try_from(index).ok().and_then(|index| bars.get(index)).copied();
            let is_config = index == VFIO_PCI_CONFIG_REGION_INDEX;
            let size = if is_config { config.len() as u64 } else { bar.unwrap_or(0) };
            let flags = if is_config { flags } else { flags | RegionFlags::MMAP };
            let file_offset = u64::from(index).saturating_mul(REGION_STRIDE);
            RegionInfo { index, flags, size, file_offset, ..RegionInfo::default() }
        };
        let regions: Vec<_> = (0..=VFIO_PCI_CONFIG_REGION_INDEX).map(region).collect();
        let irqs = irqs.into_iter().chain(Events::infos()).collect();
        let file = tempfile::tempfile()?;
        file.set_len(REGION_STRIDE.saturating_mul(regions.len() as u64))?;
        let device = Self {
            faults,
            file,
            regions,
            irq_infos: irqs,
            msix: msix_layout(&config),
            power_on: config,
            irqs: Mutex::default(),
            events: Events::default(),
            flags: DeviceFlags::PCI | DeviceFlags::RESET,
            zeros: Vec::new(),
            mmaps: Mutex::default(),
            bus: Vec::new(),
        };
        device.power_on()?;
        // vfio-pci enables a function when it is opened (pci_enable_device).
        let enabled = Command::MEMORY | Command::IO;
        device.poke(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND.into(), &enabled.bits().to_le_bytes())?;
        device.zap()?;
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

    fn without_zeros(&self, region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
        let mut data = data.to_vec();
        if region == VFIO_PCI_CONFIG_REGION_INDEX {
            for (byte, at) in data.iter_mut().zip(offset..) {
                let zeros = self.zeros.iter().filter(|(offset, _)| *offset == at);
                zeros.for_each(|(_, bits)| *byte &= !bits);
            }
        }
        data
    }

    /// Bytes of the real config space, which the guest does not see all of.
    ///
    /// # Errors
    ///
    /// The offset is out of range.
    pub fn config(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.peek(VFIO_PCI_CONFIG_REGION_INDEX, offset, data)
    }

    pub(super) fn find_irq(&self, index: u32) -> IrqInfo {
        let known = self.irq_infos.iter().find(|info| info.index == index);
        known.copied().unwrap_or(IrqInfo { index, ..IrqInfo::default() })
    }

    fn power_on(&self) -> io::Result<()> {
        self.poke(VFIO_PCI_CONFIG_REGION_INDEX, 0, &self.power_on)?;
        self.zap()?;
        self.quiesce()
    }

    /// Reads what the hardware has in a region.
    pub(super) fn peek(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let position = file_position(self.find(region)?, offset, data.len())?;
        self.file.read_exact_at(data, position)
    }

    /// Changes what the hardware has in a region.
    pub(super) fn poke(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let position = file_position(self.find(region)?, offset, data.len())?;
        self.file.write_all_at(data, position)
    }

    fn find(&self, index: u32) -> io::Result<&RegionInfo> {
        self.regions.iter().find(|region| region.index == index).ok_or_else(|| errno(libc::EINVAL))
    }
}

impl Device for PciDevice {
    fn flags(&self) -> DeviceFlags {
        self.flags
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.faults.pass(Call::RegionInfo)?;
        self.events.check_open()?;
        self.find(index).cloned()
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.faults.pass(Call::IrqInfo)?;
        self.events.check_open()?;
        Ok(self.find_irq(index))
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let position = file_position(region, offset, data.len());
        self.faults.pass_bytes(Call::Read, |length| {
            let (part, _) = data.split_at_mut(length.min(data.len()));
            position.as_ref().map_or(Ok(()), |position| self.file.read_exact_at(part, *position))
        })?;
        self.events.check_open()?;
        self.reaches(region.index)?;
        self.file.read_exact_at(data, position?)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let data = self.without_zeros(region.index, offset, data);
        self.faults.pass_bytes(Call::Write, |length| {
            let (part, _) = data.split_at(length.min(data.len()));
            self.poke(region.index, offset, part)
        })?;
        self.events.check_open()?;
        self.reaches(region.index)?;
        self.poke(region.index, offset, &data)?;
        self.zap()?;
        // The command register may have let the pin go.
        self.signal_pin(&mut lock(&self.irqs))
    }

    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap> {
        self.faults.pass(Call::Mmap)?;
        let length = usize::try_from(range.size()).map_err(|_| errno(libc::EINVAL))?;
        let position = file_position(region, range.start(), length)?;
        self.events.check_open()?;
        let hold = self.clone().hold();
        let mmap = RegionMmap::new(
            hold.clone(),
            self.file.as_fd(),
            position,
            range.start(),
            range.size(),
        )?;
        self.mapped(&hold, mmap.host_address().addr());
        Ok(mmap)
    }

    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        self.faults.pass(Call::SetIrqs)?;
        self.events.check_open()?;
        self.change_irqs(call)
    }

    fn reset(&self) -> io::Result<()> {
        self.faults.pass(Call::Reset)?;
        self.events.check_open()?;
        match self.flags.contains(DeviceFlags::RESET) {
            true => self.power_on(),
            // vfio_pci_ioctl_reset.
            false => Err(errno(libc::EINVAL)),
        }
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        self.faults.pass(Call::BusMembers)?;
        self.events.check_open()?;
        match self.bus.as_slice() {
            [] => Err(errno(libc::ENODEV)),
            members => Ok(members.to_vec()),
        }
    }

    fn reset_bus(&self) -> io::Result<()> {
        self.faults.pass(Call::ResetBus)?;
        self.events.check_open()?;
        match self.bus.iter().all(|member| member.ours) {
            true if !self.bus.is_empty() => self.power_on(),
            _ => Err(errno(libc::EINVAL)),
        }
    }

    fn close(&self) {
        self.events.close();
        lock(&self.irqs).off();
    }
}
