//! A PCI device behind vfio-pci.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_model::{Interrupts, PciFunction, Region};

use super::faults::{Call, Faults, errno, lock};
use super::mmaps::Mmaps;
use super::opened::{ADDRESS, Opened, Shape, info_reply};
use crate::address::ByteRange;
use crate::backend::{
    BusMember, Device, DeviceFlags, IrqFlags, IrqInfo, RegionInfo, RegionMmap, SetIrqs,
    file_position, mmap_position,
};
use crate::host::HostMemory as _;
use crate::pci::msi::MsiLayout;
use crate::pci::presence::Identity;

/// A PCI function in memory, opened through a group of its own.
#[derive(Debug)]
pub struct PciDevice {
    faults: Arc<Faults>,
    shape: Shape,
    pub(super) opened: Opened,
    pub(super) mmaps: Arc<Mmaps>,
    /// The number of requests by the host.
    requests: AtomicU64,
    /// The IDs that the host recorded at enumeration.
    pub(super) recorded: Option<Identity>,
}

impl PciDevice {
    /// A function like QEMU's NVMe: BAR0 with registers, MSI-X table (65 vectors) and PBA; an INTx
    /// pin, PCI Express and power management.
    ///
    /// # Errors
    ///
    /// The error of the call that opens the device.
    pub fn nvme(faults: Arc<Faults>, msix: IrqFlags) -> io::Result<Self> {
        let irq = |index, count, flags| IrqInfo { index, flags, count };
        let irqs = vec![
            irq(VFIO_PCI_INTX_IRQ_INDEX, 1, IrqFlags::AUTOMASKED),
            irq(VFIO_PCI_MSIX_IRQ_INDEX, 65, msix),
        ];
        Self::new(faults, PciFunction::nvme().config, &[0x4000], irqs)
    }

    /// A function with an INTx pin, optional MSI with this message control, and optional MSI-X with
    /// this number of vectors. Capabilities: MSI-X at 0x40 with the table at 0x1_0000 and the PBA
    /// at 0x1_8000 of BAR0, MSI at 0x50, PCI Express with FLR at 0x80.
    ///
    /// # Errors
    ///
    /// The error of the call that opens the device.
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
        let irq = |index, flags, count: u16| IrqInfo { index, flags, count: count.into() };
        let intx = irq(VFIO_PCI_INTX_IRQ_INDEX, IrqFlags::AUTOMASKED, 1);
        let msi = msi.map(|control| {
            let vectors = MsiLayout::new(control).vectors();
            irq(VFIO_PCI_MSI_IRQ_INDEX, IrqFlags::NORESIZE, vectors)
        });
        let msix = msix.map(|(vectors, flags)| irq(VFIO_PCI_MSIX_IRQ_INDEX, flags, vectors));
        let irqs = [Some(intx), msi, msix].into_iter().flatten().collect();
        Self::new(faults, config, &[0x2_0000], irqs)
    }

    /// A function with this config space, these sizes of BAR0 to BAR5 and the ROM, and these counts
    /// of interrupts. MSI-X with [`NORESIZE`](IrqFlags::NORESIZE) selects a kernel that cannot add
    /// vectors; vfio-pci determines all other flags.
    ///
    /// # Errors
    ///
    /// The error of the call that opens the device.
    pub fn new(
        faults: Arc<Faults>,
        config: Vec<u8>,
        bars: &[u64],
        irqs: Vec<IrqInfo>,
    ) -> io::Result<Self> {
        let find = |index: u32| irqs.iter().find(|irq| irq.index == index);
        let count = |index: u32| find(index).map_or(0, |irq| irq.count);
        let function = PciFunction {
            intx: count(VFIO_PCI_INTX_IRQ_INDEX) != 0,
            msi: count(VFIO_PCI_MSI_IRQ_INDEX),
            msix: count(VFIO_PCI_MSIX_IRQ_INDEX),
            express: true,
            resets: true,
            ..PciFunction::new(config, bars)
        };
        let msix = find(VFIO_PCI_MSIX_IRQ_INDEX);
        let shape = Shape {
            grows_msix: !msix.is_some_and(|irq| irq.flags.contains(IrqFlags::NORESIZE)),
            host_vectors: u32::MAX,
            counts_vectors: true,
            function,
            bus: Vec::new(),
        };
        let (opened, mmaps) = (shape.open()?, Mmaps::new(faults.clone()));
        let requests = AtomicU64::new(0);
        Ok(Self { faults, shape, opened, mmaps, requests, recorded: None })
    }

    /// Opens the changed device anew. After an error, which no change causes, the device stays.
    fn changed(mut self, change: impl FnOnce(&mut Shape)) -> Self {
        change(&mut self.shape);
        if let Ok(opened) = self.shape.open() {
            self.opened = opened;
        }
        self
    }

    /// Removes the function-level reset, and puts the device on a bus with these functions. A bus
    /// without functions cannot be reset.
    pub fn without_reset(self, bus: Vec<BusMember>) -> Self {
        self.changed(|shape| {
            shape.function.resets = false;
            shape.bus = bus;
        })
    }

    /// Limits the interrupt vectors that the host has for the device.
    pub fn with_host_vectors(self, vectors: u32) -> Self {
        self.changed(|shape| shape.host_vectors = vectors)
    }

    /// Makes the kernel report ENOSPC, and no number, if the host has too few vectors.
    pub fn with_uncounted_vectors(self) -> Self {
        self.changed(|shape| shape.counts_vectors = false)
    }

    /// Makes bits of a byte of config space read-only zero.
    pub fn with_zeros(self, offset: u64, bits: u8) -> Self {
        self.changed(|shape| shape.function.zeros.push((offset, bits)))
    }

    /// Changes the size of a region, its flags, and its parts that can be mapped.
    pub fn with_region(self, index: u32, change: impl FnOnce(&mut RegionInfo)) -> Self {
        let mut info = self.region_info(index).unwrap_or_default();
        change(&mut info);
        let area = |area: &ByteRange| area.start()..area.end();
        let region = Region {
            size: info.size,
            flags: info.flags.bits(),
            sparse: info.sparse.map(|areas| areas.iter().map(area).collect()),
            ..Region::default()
        };
        self.changed(|shape| {
            let mut regions = shape.function.regions.iter_mut();
            regions.nth(index as usize).into_iter().for_each(|own| *own = region.clone());
        })
    }

    /// Reads the device's config space, without vfio-pci. Bytes beyond its end are zero.
    ///
    /// # Errors
    ///
    /// No error is expected.
    pub fn config(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(|_| errno(libc::EINVAL))?;
        self.opened.system.config(ADDRESS, offset, data)
    }

    /// The state of its interrupts in VFIO.
    pub fn irqs(&self) -> Interrupts {
        self.opened.system.interrupts(ADDRESS)
    }

    /// The number of its events, errors and requests, that have an eventfd.
    pub fn heard(&self) -> usize {
        self.irqs().events.len()
    }

    /// The device fires a vector of MSI or MSI-X, whichever is enabled: its eventfd is signalled.
    /// The kernel masks a vector of MSI-X that has no eventfd: its pending bit is set. Nothing
    /// happens without MSI and MSI-X, or for a vector that does not exist.
    ///
    /// # Errors
    ///
    /// The pending bits cannot be written.
    pub fn raise(&self, vector: u16) -> io::Result<()> {
        self.opened.system.fire(ADDRESS, vector.into())
    }

    /// The device asserts its interrupt pin or deasserts it.
    ///
    /// # Errors
    ///
    /// No error is expected.
    pub fn assert_pin(&self, asserted: bool) -> io::Result<()> {
        self.opened.system.assert_pin(ADDRESS, asserted)
    }

    /// vfio-pci reads the resample eventfd and unmasks the pin if it was signalled.
    ///
    /// # Errors
    ///
    /// No error is expected.
    pub fn resample(&self) -> io::Result<()> {
        self.opened.system.poll_unmask(ADDRESS);
        Ok(())
    }

    /// The device reports an uncorrectable error.
    ///
    /// # Errors
    ///
    /// No error is expected.
    pub fn fail(&self) -> io::Result<()> {
        self.opened.system.report_error(ADDRESS);
        Ok(())
    }

    /// The host requests the device, as it does every 10 s until the device
    /// [is closed](Self::is_given_back). Returns the number of requests.
    ///
    /// # Errors
    ///
    /// No error is expected.
    pub fn ask_for(&self) -> io::Result<u64> {
        if self.is_given_back() {
            return Ok(self.requests.load(Ordering::Relaxed));
        }
        self.opened.system.unbind(ADDRESS)?;
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        Ok(before.saturating_add(1))
    }

    /// Whether the device's file is closed and no region is mapped.
    pub fn is_given_back(&self) -> bool {
        !self.opened.system.is_open(ADDRESS)
    }

    fn region_info(&self, index: u32) -> io::Result<RegionInfo> {
        let file = self.opened.file()?;
        let reply = info_reply(index, |reply| file.system.region_info(file.fd, reply))?;
        Ok(RegionInfo::from_reply(&reply))
    }

    fn pread(&self, position: u64, data: &mut [u8]) -> io::Result<()> {
        let file = self.opened.file()?;
        match file.system.read(file.fd, position, data)? {
            length if length == data.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn pwrite(&self, position: u64, data: &[u8]) -> io::Result<()> {
        let file = self.opened.file()?;
        self.mmaps.change_decoding(&file, || match file.system.write(file.fd, position, data)? {
            length if length == data.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        })
    }
}

impl Device for PciDevice {
    fn flags(&self) -> DeviceFlags {
        let file = self.opened.file();
        let reply =
            file.and_then(|file| info_reply(0, |reply| file.system.device_info(file.fd, reply)));
        let flags = reply.ok().and_then(|reply| reply.get(4..)?.first_chunk().copied());
        let flags = flags.map(|flags| DeviceFlags::from_bits_retain(u32::from_ne_bytes(flags)));
        flags.unwrap_or(DeviceFlags::PCI)
    }

    fn recorded(&self) -> Option<Identity> {
        self.recorded
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.faults.pass(Call::RegionInfo)?;
        self.region_info(index)
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.faults.pass(Call::IrqInfo)?;
        let file = self.opened.file()?;
        let reply = info_reply(index, |reply| file.system.irq_info(file.fd, reply))?;
        Ok(IrqInfo::from_reply(&reply))
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let position = file_position(region, offset, data.len())?;
        self.faults.pass_bytes(Call::Read, |length| {
            let (part, _) = data.split_at_mut(length.min(data.len()));
            self.pread(position, part)
        })?;
        self.pread(position, data)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let position = file_position(region, offset, data.len())?;
        self.faults.pass_bytes(Call::Write, |length| {
            let (part, _) = data.split_at(length.min(data.len()));
            self.pwrite(position, part)
        })?;
        self.pwrite(position, data)
    }

    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap> {
        self.faults.pass(Call::Mmap)?;
        let position = mmap_position(region, range)?;
        let file = self.opened.file()?;
        let memory = file.system.mmap(file.fd, position, range.size())?;
        let hold = self.mmaps.hold(self.clone(), file);
        let mmap =
            RegionMmap::new(hold.clone(), memory.as_fd(), position, range.start(), range.size())?;
        hold.mapped_at(mmap.host_address().addr());
        Ok(mmap)
    }

    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        self.faults.pass(Call::SetIrqs)?;
        self.opened.file()?.set_irqs(call)
    }

    fn reset(&self) -> io::Result<()> {
        self.faults.pass(Call::Reset)?;
        let file = self.opened.file()?;
        self.mmaps.change_decoding(&file, || file.system.reset(file.fd))
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        self.faults.pass(Call::BusMembers)?;
        let file = self.opened.file()?;
        info_reply(0, |reply| file.system.hot_reset_info(file.fd, reply))?;
        Ok(self.shape.bus.clone())
    }

    fn reset_bus(&self) -> io::Result<()> {
        self.faults.pass(Call::ResetBus)?;
        let file = self.opened.file()?;
        self.mmaps.change_decoding(&file, || file.system.hot_reset(file.fd, &self.opened.groups))
    }

    fn resets_when_closed(&self) -> bool {
        self.flags().contains(DeviceFlags::RESET)
    }

    fn close(&self) {
        // The file is dropped without the lock. A mapped region may still hold it.
        let file = lock(&self.opened.file).take();
        drop(file);
    }
}
