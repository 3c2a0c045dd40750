//! `/dev/vfio/N`: groups, their viability, their containers and the fds of their devices.

use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::address::PciAddress;
use crate::describe::Driver;
use crate::errno::errno;
use crate::files::{Fd, Kind};
use crate::notifiers::Notifier;
use crate::state::{State, System};
use crate::vf_token::options;

impl System {
    /// Opens `/dev/vfio/N` (`vfio_group_fops_open`).
    ///
    /// # Errors
    ///
    /// - `ENOENT`: vfio-pci has no device of the group, so that the node does not exist.
    /// - `EPERM`: the group has no IOMMU and the process lacks `CAP_SYS_RAWIO`.
    /// - `EBUSY`: the group is open, one of its devices is or is bound to an iommufd, or it has a
    ///   container.
    pub fn open_group(&self, group: u32) -> io::Result<Fd> {
        let mut state = self.state();
        let exists = state.files.exists(Kind::Group(group));
        // A kernel that does not revoke groups keeps the node of an open group.
        let keeps_node = exists && !state.description.kernel.revokes_groups();
        if !keeps_node && !state.description.has_driver(group, Driver::Vfio) {
            return Err(errno(libc::ENOENT));
        }
        state.check_raw_io(group)?;
        let is_bound = state.bound_in(group).any(|bound| bound.cdev.is_some());
        let is_used = state.open_devices(group) > 0 || is_bound;
        if exists || is_used || state.memberships.contains_key(&group) {
            return Err(errno(libc::EBUSY));
        }
        state.notifiers.unregister_all(Notifier::Group, group);
        Ok(state.files.open(Kind::Group(group)))
    }

    /// `VFIO_GROUP_GET_STATUS` (`vfio_group_ioctl_get_status`): the flags.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `argsz` is below 8.
    /// - `ENODEV`: vfio-pci has no device of the group any more.
    pub fn group_status(&self, group: Fd, argsz: u32) -> io::Result<u32> {
        let state = self.state();
        let is_group = matches!(state.files.kind(group)?, Kind::Group(_) | Kind::Revoked);
        if is_group && argsz < 8 {
            return Err(errno(libc::EINVAL));
        }
        let group = state.group_of(group)?;
        let is_set = state.has_container(group);
        let claimed = is_set && state.description.kernel.claims_groups();
        let is_free = state.is_viable(group) && state.bound_in(group).next().is_none();
        let viable = match claimed || is_free {
            true => sys::VFIO_GROUP_FLAGS_VIABLE,
            false => 0,
        };
        Ok(if is_set { viable | sys::VFIO_GROUP_FLAGS_CONTAINER_SET } else { viable })
    }

    /// `VFIO_GROUP_SET_CONTAINER` (`vfio_group_ioctl_set_container`).
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the group has a container; or the container's IOMMU cannot translate for the
    ///   group, because it has mappings at addresses that are reserved for it.
    /// - `EPERM`: the group is not viable, the process lacks `CAP_SYS_RAWIO` for a group without an
    ///   IOMMU, or groups with and without an IOMMU would share the container.
    /// - `EBADFD`, before 6.12 `EINVAL`: the second file is no container and no iommufd.
    /// - `ENODEV`: vfio-pci has no device of the group any more.
    pub fn set_container(&self, group: Fd, container: Fd) -> io::Result<()> {
        self.state().set_container(group, container)
    }

    /// `VFIO_GROUP_UNSET_CONTAINER` (`vfio_group_ioctl_unset_container`).
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the group has no container.
    /// - `EBUSY`: a device of the group is open, or in 5.4 KVM is linked with the group.
    pub fn unset_container(&self, group: Fd) -> io::Result<()> {
        let mut state = self.state();
        if state.files.kind(group)? == Kind::Revoked {
            return Err(errno(libc::EINVAL));
        }
        let group = state.group_of(group)?;
        if state.iommufd_groups.contains_key(&group) {
            state.leave_iommufd(group);
            return Ok(());
        }
        let id = state.memberships.get(&group).copied().ok_or_else(|| errno(libc::EINVAL))?;
        let is_linked =
            !state.description.kernel.links_files() && state.files.is_linked(Kind::Group(group));
        if is_linked || state.open_devices(group) > 0 {
            return Err(errno(libc::EBUSY));
        }
        state.memberships.remove(&group);
        state.detach_group(id, group);
        Ok(())
    }

    /// `VFIO_GROUP_GET_DEVICE_FD` (`vfio_group_ioctl_get_device_fd`).
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the group has no container with an IOMMU, or in 5.4 is not viable; or the name
    ///   has options that the device does not take.
    /// - `ENODEV`: vfio-pci has no such device in the group.
    /// - `EPERM`: the group has no IOMMU and the process lacks `CAP_SYS_RAWIO`; or the container is an
    ///   iommufd, and another or a driver of the host uses the group.
    /// - The errors of [`attach_pt`](Self::attach_pt), where the container is an iommufd.
    /// - `EACCES`: the device is a virtual function or has some that are open, and the name has no
    ///   option `vf_token=UUID`, or the wrong one.
    pub fn open_device(&self, group: Fd, name: &str) -> io::Result<Fd> {
        let mut state = self.state();
        let group = state.group_of(group)?;
        let usable = state.check_ready(group).and_then(|()| state.check_raw_io(group));
        let found = state.find(group, name);
        let address = match state.description.kernel.looks_names_up_first() {
            true => found.and_then(|address| usable.map(|()| address))?,
            false => usable.and(found)?,
        };
        if !state.files.exists(Kind::Device(address)) {
            state.bind_by_group(address, group)?;
            state.enable(address)?;
        }
        Ok(state.files.open(Kind::Device(address)))
    }
}

impl State {
    fn group_of(&self, fd: Fd) -> io::Result<u32> {
        match self.files.kind(fd)? {
            Kind::Group(group) => Ok(group),
            Kind::Revoked => Err(errno(libc::ENODEV)),
            _ => self.unknown_ioctl(fd),
        }
    }

    /// A group without an IOMMU needs `CAP_SYS_RAWIO`.
    fn check_raw_io(&self, group: u32) -> io::Result<()> {
        match self.description.noiommu.contains(&group) && !self.description.raw_io {
            true => Err(errno(libc::EPERM)),
            false => Ok(()),
        }
    }

    /// The devices of a group, with their drivers.
    pub fn members(&self, group: u32) -> impl Iterator<Item = (PciAddress, Driver)> {
        let functions = self.description.functions.iter();
        let members = functions.filter(move |(_, entry)| entry.group == group);
        members.map(|(address, entry)| (*address, entry.driver))
    }

    /// Whether no driver of the host has a device of the group (`vfio_dev_viable`). A device that
    /// leaves vfio-pci, has no driver, or has a stub or bridge driver, does not matter.
    pub fn is_viable(&self, group: u32) -> bool {
        !self.description.has_driver(group, Driver::Host)
    }

    /// How many files of the devices of a group hold the group's file. A device that is bound to an
    /// iommufd does not, even if the group opened it.
    pub fn open_devices(&self, group: u32) -> usize {
        let is_bound = |address| self.devices.get(&address).is_some_and(|d| d.bound.is_some());
        let members = self.members(group).filter(|(address, _)| !is_bound(*address));
        members.map(|(address, _)| self.files.count(Kind::Device(address))).sum()
    }

    fn set_container(&mut self, fd: Fd, container: Fd) -> io::Result<()> {
        if self.files.kind(fd)? == Kind::Revoked {
            self.files.kind(container)?;
        }
        let group = self.group_of(fd)?;
        let kernel = self.description.kernel;
        if !kernel.looks_fd_up_first() && container.0 < 0 {
            return Err(errno(libc::EINVAL));
        }
        let found = self.files.kind(container);
        if kernel.looks_fd_up_first() {
            found.as_ref().map_err(|_| errno(libc::EBADF))?;
        }
        if self.has_container(group) {
            return Err(errno(libc::EINVAL));
        }
        if !kernel.looks_fd_up_first() {
            self.check_raw_io(group)?;
        }
        let id = match found? {
            Kind::Container(id) => id,
            Kind::Iommufd(id) => return self.compat_join(id, group),
            _ => return Err(errno(kernel.not_a_container())),
        };
        self.check_raw_io(group)?;
        self.attach_group(id, group)?;
        self.memberships.insert(group, id);
        Ok(())
    }

    /// A file of the group or of one of its devices was closed. After the last, the group leaves
    /// its container.
    pub fn group_closed(&mut self, group: u32) {
        if self.files.exists(Kind::Group(group)) || self.open_devices(group) > 0 {
            return;
        }
        if let Some(id) = self.memberships.remove(&group) {
            self.detach_group(id, group);
        }
        self.leave_iommufd(group);
    }

    fn has_container(&self, group: u32) -> bool {
        self.memberships.contains_key(&group) || self.iommufd_groups.contains_key(&group)
    }

    /// The group's container is an iommufd no more. Devices that are open keep it.
    pub fn leave_iommufd(&mut self, group: u32) {
        if let Some(id) = self.iommufd_groups.remove(&group) {
            self.free_iommufd(id);
        }
    }

    /// A user of the group needs a container with an IOMMU (`vfio_group_add_container_user`).
    fn check_ready(&self, group: u32) -> io::Result<()> {
        let container = self.memberships.get(&group).and_then(|id| self.containers.get(id));
        let has_iommu = container.is_some_and(|container| container.iommu.is_some())
            || self.iommufd_groups.contains_key(&group);
        match has_iommu && (self.description.kernel.claims_groups() || self.is_viable(group)) {
            true => Ok(()),
            false => Err(errno(libc::EINVAL)),
        }
    }

    /// As [`check_ready`](Self::check_ready), for a user in the kernel: EPERM for a group without
    /// an IOMMU (`vfio_group_get_external_user`).
    pub fn use_container(&self, group: u32) -> io::Result<()> {
        let has_container = self.memberships.contains_key(&group);
        match has_container && self.description.noiommu.contains(&group) {
            true => Err(errno(libc::EPERM)),
            false => self.check_ready(group),
        }
    }

    /// The device of this name that vfio-pci has in the group, if it may be opened with the options
    /// behind the name.
    fn find(&mut self, group: u32, name: &str) -> io::Result<PciAddress> {
        let (address, rest) = self.named(group, name).ok_or_else(|| errno(libc::ENODEV))?;
        if self.description.kernel.has_vf_tokens() {
            self.check_token(address, options(rest)?)?;
        }
        Ok(address)
    }

    /// The device with whose address `name` begins, and the rest of the name: nothing, or options
    /// that follow a space (`vfio_pci_core_match`).
    fn named<'a>(&self, group: u32, name: &'a str) -> Option<(PciAddress, &'a str)> {
        let devices = self.members(group).filter(|(_, driver)| *driver == Driver::Vfio);
        let mut devices = devices.filter(|(address, _)| self.can_be_opened(*address));
        devices.find_map(|(address, _)| {
            let rest = name.strip_prefix(&address.to_string())?;
            let has_options = rest.starts_with(' ') && self.description.kernel.has_vf_tokens();
            (rest.is_empty() || has_options).then_some((address, rest))
        })
    }
}
