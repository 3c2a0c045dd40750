//! `/dev/vfio/devices/vfioN`: devices without their group (drivers/vfio/device_cdev.c).
//!
//! A file gives access to the device from its bind to an iommufd until its close.

use std::io;

use crate::address::PciAddress;
use crate::attach::Endpoint;
use crate::describe::Driver;
use crate::errno::errno;
use crate::files::{CdevId, Fd, IommufdId, Kind};
use crate::kernel::Kernel;
use crate::objects::{Bound, Object};
use crate::state::{State, System};

/// `struct vfio_device_bind_iommufd`, for [`System::bind_iommufd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindIommufd {
    /// The size of the struct as the caller states it: [`BindIommufd::ARGSZ`], or with a token
    /// [`BindIommufd::TOKEN_ARGSZ`].
    pub argsz: u32,
    /// 0, or [`BindIommufd::TOKEN`] in 7.3.
    pub flags: u32,
    /// An fd of `/dev/iommu`.
    pub iommufd: Fd,
    /// The VF token, to which the struct points: the bytes of a UUID, in the order of its text.
    pub token: [u8; 16],
}

impl BindIommufd {
    /// The size of the struct without a token.
    pub const ARGSZ: u32 = 16;
    /// The size of the struct with the address of a token.
    pub const TOKEN_ARGSZ: u32 = 24;
    /// `VFIO_DEVICE_BIND_FLAG_TOKEN`
    pub const TOKEN: u32 = 1;

    /// A bind to an iommufd without a token.
    #[must_use]
    pub fn to(iommufd: Fd) -> Self {
        Self { argsz: Self::ARGSZ, flags: 0, iommufd, token: [0; 16] }
    }
}

/// `struct vfio_device_attach_iommufd_pt` and `struct vfio_device_detach_iommufd_pt`, for
/// [`System::attach_pt`] and [`System::detach_pt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachPt {
    /// The size of the struct as the caller states it; [`AttachPt::ARGSZ`] and
    /// [`AttachPt::DETACH_ARGSZ`] are right.
    pub argsz: u32,
    /// 0, or [`AttachPt::PASID`] in 7.3.
    pub flags: u32,
    /// The number of an address space or a page table. A detach ignores it.
    pub id: u32,
}

impl AttachPt {
    /// The size of the struct of an attach.
    pub const ARGSZ: u32 = 12;
    /// The size of the struct of a detach.
    pub const DETACH_ARGSZ: u32 = 8;
    /// `VFIO_DEVICE_ATTACH_PASID` and `VFIO_DEVICE_DETACH_PASID`: the struct has a PASID, one word
    /// more. The kernel makes no page table for PASIDs by itself, so its number does not matter.
    pub const PASID: u32 = 1;

    /// Checks flags and `argsz` against the struct's size without a PASID; returns whether it has
    /// one.
    fn check(&self, size: u32, kernel: Kernel) -> io::Result<bool> {
        let known = if kernel.takes_pasids() { Self::PASID } else { 0 };
        let has_pasid = self.flags & Self::PASID != 0;
        let size = if has_pasid { size.saturating_add(4) } else { size };
        match self.argsz < size || self.flags & !known != 0 {
            true => Err(errno(libc::EINVAL)),
            false => Ok(has_pasid),
        }
    }
}

impl System {
    /// Opens `/dev/vfio/devices/vfioN` of a device (`vfio_device_fops_cdev_open`), which can be
    /// open several times.
    ///
    /// # Errors
    ///
    /// `ENOENT`: vfio-pci does not have the device or leaves it, the device has no IOMMU, or the
    /// kernel has no iommufd, so that the node does not exist.
    pub fn open_cdev(&self, device: PciAddress) -> io::Result<Fd> {
        let mut state = self.state();
        state.description.check_iommufd()?;
        let entry = state.entry(device).map_err(|_| errno(libc::ENOENT))?;
        let has_iommu = !state.description.noiommu.contains(&entry.group);
        if entry.driver != Driver::Vfio || !has_iommu || !state.can_be_opened(device) {
            return Err(errno(libc::ENOENT));
        }
        let id = CdevId(state.next_id());
        Ok(state.files.open(Kind::Cdev(device, id)))
    }

    /// `VFIO_DEVICE_BIND_IOMMUFD` (`vfio_df_ioctl_bind_iommufd`): the device's number in the
    /// iommufd.
    ///
    /// # Errors
    ///
    /// In the order in which the kernel checks:
    /// - `EINVAL`: `argsz` is too small, a flag is set, the fd is negative, or the device's file is
    ///   not of a character device.
    /// - `EBUSY`: the device's group is open.
    /// - `EINVAL`: the file is bound.
    /// - `EACCES` or `EINVAL` in 7.3: the device needs a VF token, or another one or none. `EFAULT`:
    ///   the struct has no address of a token.
    /// - `EBADF` or `EBADFD`: the fd is not open, or is no iommufd.
    /// - `EINVAL`: another file of the device is bound.
    /// - `EPERM`: the IOMMU does not remap interrupts; or a driver of the host or another iommufd
    ///   has a device of the group.
    pub fn bind_iommufd(&self, device: Fd, call: &BindIommufd) -> io::Result<u32> {
        let mut state = self.state();
        let (address, cdev) = match state.files.kind(device)? {
            Kind::Cdev(address, cdev) => (address, Some(cdev)),
            Kind::Device(address) => (address, None),
            _ => return state.unknown_ioctl(device),
        };
        let flags = match state.description.kernel.binds_with_tokens() {
            true => BindIommufd::TOKEN,
            false => 0,
        };
        let is_valid =
            call.argsz >= BindIommufd::ARGSZ && call.flags & !flags == 0 && call.iommufd.0 >= 0;
        let cdev = cdev.filter(|_| is_valid).ok_or_else(|| errno(libc::EINVAL))?;
        let iommufd = state.check_bind(address, cdev, call)?;
        let context = state.iommufds.get_mut(&iommufd).ok_or_else(|| errno(libc::EBADFD))?;
        let id = context.add(Object::Device);
        state.enable(address)?;
        let device = state.devices.entry(address).or_default();
        device.bound = Some(Bound { cdev: Some(cdev), iommufd, id });
        Ok(id)
    }

    /// `VFIO_DEVICE_ATTACH_IOMMUFD_PT` (`vfio_df_ioctl_attach_pt`): the number of the page table.
    /// A device that is attached moves there, and with it all devices of its group.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the file is not bound, `argsz` is too small, or a flag is unknown; or the object
    ///   is a device or for no PASID, or another device of the group is attached to another address
    ///   space.
    /// - `ENOTTY`: the device was opened by its group.
    /// - `ENOENT`: the iommufd has no such object.
    /// - `EADDRINUSE`: an area or an allowed range is at IOVAs that the device cannot use, or is
    ///   not aligned to the IOMMU's pages.
    /// - `EFAULT` or `ENOMEM`: the memory of an area cannot be pinned.
    pub fn attach_pt(&self, device: Fd, call: &AttachPt) -> io::Result<u32> {
        let mut state = self.state();
        let (address, bound) = state.bound(device)?;
        let has_pasid = call.check(AttachPt::ARGSZ, state.description.kernel)?;
        let group = state.entry(address)?.group;
        let State { iommufds, process, description, .. } = &mut *state;
        let iommufd = iommufds.get_mut(&bound.iommufd).ok_or_else(|| errno(libc::EINVAL))?;
        if has_pasid && iommufd.objects.contains_key(&call.id) {
            return Err(errno(libc::EINVAL));
        }
        iommufd.attach(Endpoint { address, group, description }, call.id, process)
    }

    /// `VFIO_DEVICE_DETACH_IOMMUFD_PT` (`vfio_df_ioctl_detach_pt`), which does nothing to a device
    /// or a PASID that is not attached.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the file is not bound, `argsz` is too small, or a flag is unknown.
    /// - `ENOTTY`: the device was opened by its group.
    pub fn detach_pt(&self, device: Fd, call: &AttachPt) -> io::Result<()> {
        let mut state = self.state();
        let (address, bound) = state.bound(device)?;
        if !call.check(AttachPt::DETACH_ARGSZ, state.description.kernel)? {
            state.detach(address, bound);
        }
        Ok(())
    }
}

impl State {
    /// What a bind needs, in the order of the kernel's checks: the iommufd.
    fn check_bind(
        &mut self,
        address: PciAddress,
        cdev: CdevId,
        call: &BindIommufd,
    ) -> io::Result<IommufdId> {
        let group = self.entry(address)?.group;
        if self.files.exists(Kind::Group(group)) || self.open_devices(group) > 0 {
            return Err(errno(libc::EBUSY));
        }
        let bound = self.devices.get(&address).and_then(|device| device.bound);
        if bound.is_some_and(|bound| bound.cdev == Some(cdev)) {
            return Err(errno(libc::EINVAL));
        }
        if self.description.kernel.binds_with_tokens() {
            self.check_token_of_bind(address, call)?;
        }
        let Kind::Iommufd(iommufd) = self.files.kind(call.iommufd)? else {
            return Err(errno(libc::EBADFD));
        };
        if bound.is_some() {
            return Err(errno(libc::EINVAL));
        }
        self.check_owner(group, iommufd).map(|()| iommufd)
    }

    /// `vfio_df_check_token`.
    fn check_token_of_bind(&mut self, address: PciAddress, call: &BindIommufd) -> io::Result<()> {
        let has_token = call.flags & BindIommufd::TOKEN != 0;
        match has_token && call.argsz < BindIommufd::TOKEN_ARGSZ {
            true => Err(errno(libc::EFAULT)),
            false => self.check_token(address, has_token.then_some(call.token)),
        }
    }

    /// Whether a user has the device open.
    pub fn is_used(&self, address: PciAddress) -> bool {
        let bound = self.devices.get(&address).is_some_and(|device| device.bound.is_some());
        bound || self.files.exists(Kind::Device(address))
    }

    /// A group is used by one iommufd and no driver of the host, and cannot raise interrupts of
    /// others (`iommufd_device_bind`).
    fn check_owner(&self, group: u32, iommufd: IommufdId) -> io::Result<()> {
        let is_owned = self.bound_in(group).any(|bound| bound.iommufd != iommufd);
        match is_owned || !self.is_viable(group) || !self.description.interrupt_remapping {
            true => Err(errno(libc::EPERM)),
            false => Ok(()),
        }
    }

    /// A group whose container is an iommufd opens a device for the first time: the device is bound
    /// and attached (`vfio_df_group_open`).
    pub fn bind_by_group(&mut self, address: PciAddress, group: u32) -> io::Result<()> {
        let Some(iommufd) = self.iommufd_groups.get(&group).copied() else {
            return Ok(());
        };
        let compat = self.iommufds.get(&iommufd).and_then(|iommufd| iommufd.compat);
        if self.description.noiommu.contains(&group) {
            return match compat {
                None if self.description.raw_io => Ok(()),
                _ => Err(errno(libc::EPERM)),
            };
        }
        self.check_owner(group, iommufd)?;
        let compat = compat.ok_or_else(|| errno(libc::ENODEV))?;
        let context = self.iommufds.get_mut(&iommufd).ok_or_else(|| errno(libc::ENODEV))?;
        let id = context.add(Object::Device);
        let device = Endpoint { address, group, description: &self.description };
        if let Err(error) = context.attach(device, compat, &mut self.process) {
            context.objects.remove(&id);
            return Err(error);
        }
        let bound = Some(Bound { cdev: None, iommufd, id });
        self.devices.entry(address).or_default().bound = bound;
        Ok(())
    }

    /// The device of a character device's file that is bound.
    fn bound(&self, fd: Fd) -> io::Result<(PciAddress, Bound)> {
        let Kind::Cdev(address, cdev) = self.files.kind(fd)? else {
            return self.unknown_ioctl(fd);
        };
        let bound = self.devices.get(&address).and_then(|device| device.bound);
        let bound = bound.filter(|bound| bound.cdev == Some(cdev));
        bound.map(|bound| (address, bound)).ok_or_else(|| errno(libc::EINVAL))
    }

    /// Whether a file of a character device is bound.
    pub fn has_access(&self, address: PciAddress, cdev: CdevId) -> bool {
        let bound = self.devices.get(&address).and_then(|device| device.bound);
        bound.is_some_and(|bound| bound.cdev == Some(cdev))
    }

    /// The binds of a group's devices.
    pub fn bound_in(&self, group: u32) -> impl Iterator<Item = Bound> {
        let members = self.members(group);
        members.filter_map(|(address, _)| self.devices.get(&address)?.bound)
    }

    fn detach(&mut self, address: PciAddress, bound: Bound) {
        let Ok(group) = self.entry(address).map(|entry| entry.group) else {
            return;
        };
        if let Some(iommufd) = self.iommufds.get_mut(&bound.iommufd) {
            let device = Endpoint { address, group, description: &self.description };
            iommufd.detach(device, &mut self.process);
        }
    }

    /// A file of a character device was closed: if it was bound, the device leaves its iommufd
    /// (`vfio_df_unbind_iommufd`).
    pub fn cdev_closed(&mut self, address: PciAddress, cdev: CdevId) {
        if self.has_access(address, cdev) {
            self.unbind_iommufd(address);
        }
        self.device_closed(address);
    }

    /// A device leaves its iommufd (`vfio_iommufd_physical_unbind`).
    pub fn unbind_iommufd(&mut self, address: PciAddress) {
        let device = self.devices.get_mut(&address);
        let Some(bound) = device.and_then(|device| device.bound.take()) else {
            return;
        };
        self.detach(address, bound);
        if let Some(iommufd) = self.iommufds.get_mut(&bound.iommufd) {
            iommufd.objects.remove(&bound.id);
        }
        self.free_iommufd(bound.iommufd);
    }
}
