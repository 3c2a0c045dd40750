//! A device of a group.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::error::Error;
use super::membership::Membership;
use crate::address::{ByteRange, PciAddress};
use crate::backend::{
    BusMember, Device, DeviceFlags, IrqInfo, RegionInfo, RegionMmap, SetIrqs, file_position, ioctl,
};
use crate::counters::VfioCalls;

/// A device of a container. It holds its group, and by it the container.
pub struct GroupDevice {
    flags: DeviceFlags,
    // The kernel keeps a group open, and so closed to others, until the files of its devices are closed: the
    // file goes first.
    file: File,
    membership: Membership,
}

impl GroupDevice {
    pub(super) fn open(membership: Membership, address: PciAddress) -> Result<Self, Error> {
        let failed = |call| {
            move |source| Error::OpenDevice {
                address,
                call,
                source,
            }
        };
        let file = membership
            .device(address)
            .map_err(failed("VFIO_GROUP_GET_DEVICE_FD"))?;
        let flags = ioctl::device_flags(&file).map_err(failed("VFIO_DEVICE_GET_INFO"))?;
        Ok(Self {
            flags,
            file,
            membership,
        })
    }

    fn calls(&self) -> &VfioCalls {
        self.membership.container().calls()
    }
}

impl Device for GroupDevice {
    fn flags(&self) -> DeviceFlags {
        self.flags
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.calls().region_info.increment();
        ioctl::region_info(&self.file, index)
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.calls().irq_info.increment();
        ioctl::irq_info(&self.file, index)
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let position = file_position(region, offset, data.len())?;
        self.calls().region_read.increment();
        self.file.read_exact_at(data, position)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let position = file_position(region, offset, data.len())?;
        self.calls().region_write.increment();
        self.file.write_all_at(data, position)
    }

    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap> {
        let length = usize::try_from(range.size()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let position = file_position(region, range.start(), length)?;
        self.calls().region_mmap.increment();
        let device = self.clone();
        RegionMmap::new(device, self.file.as_fd(), position, range.start(), range.size())
    }

    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        self.calls().set_irqs.increment();
        ioctl::set_irqs(&self.file, call)
    }

    fn reset(&self) -> io::Result<()> {
        self.calls().reset.increment();
        ioctl::reset(&self.file)
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        self.calls().hot_reset_info.increment();
        let container = self.membership.container();
        let members = ioctl::hot_reset_info(&self.file)?;
        Ok(members
            .into_iter()
            .map(|(address, group)| container.bus_member(address, group))
            .collect())
    }

    fn reset_bus(&self) -> io::Result<()> {
        self.calls().hot_reset.increment();
        let members = ioctl::hot_reset_info(&self.file)?;
        // Each group once: the kernel refuses more groups than there are functions.
        let numbers: BTreeSet<u32> = members.into_iter().map(|(_, group)| group).collect();
        let groups = self.membership.container().groups();
        let files: Vec<&File> = numbers
            .iter()
            .filter_map(|number| groups.file(*number).map(AsRef::as_ref))
            .collect();
        ioctl::hot_reset(&self.file, &files)
    }
}
