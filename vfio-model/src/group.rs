//! `/dev/vfio/N`: groups, their viability, their devices' fds, and KVM's link to them.

use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::PciAddress;
use crate::driver::Notifier;
use crate::files::Kind;
use crate::{Driver, Fd, State, errno};

impl State {
    fn group_of(&self, fd: Fd) -> io::Result<u32> {
        match self.files.kind(fd)? {
            Kind::Group(group) => Ok(group),
            Kind::Revoked => Err(errno(libc::ENODEV)),
            _ => self.foreign(fd),
        }
    }

    /// The devices of a group, with their drivers.
    pub fn members(&self, group: u32) -> impl Iterator<Item = (PciAddress, Driver)> {
        let functions = self.description.functions.iter();
        functions
            .filter(move |(_, entry)| entry.group == group)
            .map(|(address, entry)| (*address, entry.driver))
    }

    /// Whether no driver of the host's has a device of the group. A device that is leaving vfio-pci
    /// is no matter, nor is one without a driver, one that a stub keeps, or a bridge.
    pub fn is_viable(&self, group: u32) -> bool {
        self.members(group).all(|(_, driver)| driver != Driver::Host)
    }

    /// How many devices of a group are open.
    fn open_devices(&self, group: u32) -> usize {
        let counts =
            self.members(group).map(|(address, _)| self.files.count(Kind::Device(address)));
        counts.sum()
    }

    /// The group's node is there while vfio-pci has one of its devices. Nobody else may have the
    /// group, its file or what is left of it: devices, or a container that they keep.
    pub fn open_group(&mut self, group: u32) -> io::Result<Fd> {
        // Before groups were revoked, their files kept them, and their nodes.
        let is_kept =
            !self.description.kernel.revokes_groups() && self.files.exists(Kind::Group(group));
        if !is_kept && !self.members(group).any(|(_, driver)| driver == Driver::Vfio) {
            return Err(errno(libc::ENOENT));
        }
        if self.description.noiommu.contains(&group) && !self.description.raw_io {
            return Err(errno(libc::EPERM));
        }
        let is_used = self.files.exists(Kind::Group(group))
            || self.open_devices(group) > 0
            || self.memberships.contains_key(&group);
        if is_used {
            return Err(errno(libc::EBUSY));
        }
        self.notices.forget(Notifier::Group, group);
        Ok(self.files.open(Kind::Group(group)))
    }

    /// `VFIO_GROUP_GET_STATUS`: the flags.
    pub fn group_status(&self, fd: Fd, argsz: u32) -> io::Result<u32> {
        let is_group = matches!(self.files.kind(fd)?, Kind::Group(_) | Kind::Revoked);
        if is_group && argsz < 8 {
            return Err(errno(libc::EINVAL));
        }
        let group = self.group_of(fd)?;
        let is_set = self.memberships.contains_key(&group);
        let claimed = is_set && self.description.kernel.claims_groups();
        let mut flags = 0;
        if claimed || self.is_viable(group) {
            flags |= sys::VFIO_GROUP_FLAGS_VIABLE;
        }
        if is_set {
            flags |= sys::VFIO_GROUP_FLAGS_CONTAINER_SET;
        }
        Ok(flags)
    }

    /// `VFIO_GROUP_SET_CONTAINER`.
    pub fn set_container(&mut self, fd: Fd, container: Fd) -> io::Result<()> {
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
        if self.memberships.contains_key(&group) {
            return Err(errno(libc::EINVAL));
        }
        let may = match self.description.noiommu.contains(&group) && !self.description.raw_io {
            true => Err(errno(libc::EPERM)),
            false => Ok(()),
        };
        if !kernel.looks_fd_up_first() {
            may.as_ref().map_err(|_| errno(libc::EPERM))?;
        }
        let Kind::Container(id) = found? else {
            return Err(errno(kernel.not_a_container()));
        };
        may?;
        self.join(id, group)?;
        self.memberships.insert(group, id);
        Ok(())
    }

    /// `VFIO_GROUP_UNSET_CONTAINER`: not while somebody else than the group's file uses the
    /// container.
    pub fn unset_container(&mut self, fd: Fd) -> io::Result<()> {
        if self.files.kind(fd)? == Kind::Revoked {
            return Err(errno(libc::EINVAL));
        }
        let group = self.group_of(fd)?;
        let Some(id) = self.memberships.get(&group).copied() else {
            return Err(errno(libc::EINVAL));
        };
        let linked =
            !self.description.kernel.links_files() && self.files.is_linked(Kind::Group(group));
        if linked || self.open_devices(group) > 0 {
            return Err(errno(libc::EBUSY));
        }
        self.memberships.remove(&group);
        self.leave(id, group);
        Ok(())
    }

    /// A file of the group, or of one of its devices, is gone: with the last, the group leaves its
    /// container.
    pub fn dissolve(&mut self, group: u32) {
        if self.files.exists(Kind::Group(group)) || self.open_devices(group) > 0 {
            return;
        }
        if let Some(id) = self.memberships.remove(&group) {
            self.leave(id, group);
        }
    }

    /// Whether devices of a group can be opened: it has a container, which has an IOMMU.
    fn ready(&self, group: u32) -> io::Result<()> {
        let container = self.memberships.get(&group).and_then(|id| self.containers.get(id));
        let has_iommu = container.is_some_and(|container| container.iommu.is_some());
        match has_iommu && (self.description.kernel.claims_groups() || self.is_viable(group)) {
            true => Ok(()),
            false => Err(errno(libc::EINVAL)),
        }
    }

    /// `VFIO_GROUP_GET_DEVICE_FD`.
    pub fn open_device(&mut self, fd: Fd, name: &str) -> io::Result<Fd> {
        let group = self.group_of(fd)?;
        let noiommu = self.description.noiommu.contains(&group);
        let may = match noiommu && !self.description.raw_io {
            true => Err(errno(libc::EPERM)),
            false => Ok(()),
        };
        let address = if self.description.kernel.looks_names_up_first() {
            let address = self.find(group, name)?;
            self.ready(group)?;
            may?;
            address
        } else {
            self.ready(group)?;
            may?;
            self.find(group, name)?
        };
        if !self.files.exists(Kind::Device(address)) {
            self.enable(address)?;
        }
        Ok(self.files.open(Kind::Device(address)))
    }

    /// A device of the group that vfio-pci has, by its name.
    fn find(&self, group: u32, name: &str) -> io::Result<PciAddress> {
        let devices = self.members(group).filter(|(_, driver)| *driver == Driver::Vfio);
        for (address, _) in devices.filter(|(address, _)| self.can_be_opened(*address)) {
            let Some(rest) = name.strip_prefix(&address.to_string()) else {
                continue;
            };
            // Options follow after a space. The only one there is, `vf_token=`, is for functions
            // with SR-IOV.
            match rest {
                "" => return Ok(address),
                _ if !self.description.kernel.looks_names_up_first() || !rest.starts_with(' ') => {}
                _ if rest.trim_start_matches(' ').is_empty() => return Ok(address),
                _ => return Err(errno(libc::EINVAL)),
            }
        }
        Err(errno(libc::ENODEV))
    }

    /// Whether a KVM's fd is one.
    fn kvm_of(&self, fd: Fd) -> io::Result<()> {
        match self.files.kind(fd)? {
            Kind::Kvm => Ok(()),
            _ => self.foreign(fd),
        }
    }

    /// `KVM_DEV_VFIO_FILE_ADD`, which was `KVM_DEV_VFIO_GROUP_ADD`.
    pub fn link(&mut self, kvm: Fd, fd: Fd) -> io::Result<()> {
        self.kvm_of(kvm)?;
        let kind = self.files.kind(fd)?;
        match kind {
            Kind::Group(group) if !self.description.kernel.links_files() => {
                self.use_container(group)?
            }
            Kind::Group(_) | Kind::Revoked => {}
            Kind::Device(_) if self.description.kernel.links_devices() => {}
            _ => return Err(errno(libc::EINVAL)),
        }
        match self.files.link(kvm, fd) {
            true => {
                self.tell_of_kvm(kind, Some(kvm));
                Ok(())
            }
            false => Err(errno(libc::EEXIST)),
        }
    }

    /// The external user's part of the core: whoever uses a group needs a container with an IOMMU.
    pub fn use_container(&self, group: u32) -> io::Result<()> {
        let has_container = self.memberships.contains_key(&group);
        match has_container && self.description.noiommu.contains(&group) {
            true => Err(errno(libc::EPERM)),
            false => self.ready(group),
        }
    }

    /// `KVM_DEV_VFIO_FILE_DEL`.
    pub fn unlink(&mut self, kvm: Fd, fd: Fd) -> io::Result<()> {
        self.kvm_of(kvm)?;
        let kind = self.files.kind(fd)?;
        match self.files.unlink(kvm, fd) {
            true => {
                self.tell_of_kvm(kind, None);
                Ok(())
            }
            false => Err(errno(libc::ENOENT)),
        }
    }
}
