//! `/dev/vfio/vfio`: containers and their IOMMU drivers.
//!
//! A process needs no privilege to open a container; a container gets its privilege from its
//! groups. When the last group leaves, the IOMMU and all mappings go with it.
//!
//! An iommufd answers these calls, too, for groups whose container it is.

use std::io;
use std::ops::Range;

use vfio_bindings::bindings::vfio as sys;

use crate::describe::Description;
use crate::errno::errno;
use crate::files::{ContainerId, Fd, Kind};
use crate::notifiers::Notifier;
use crate::process::Process;
use crate::ranges;
use crate::state::{Container, Iommu, State, System};
use crate::type1::{MapDma, Type1, UnmapDma};

/// `VFIO_TYPE1_NESTING_IOMMU`, which newer headers do not define.
const TYPE1_NESTING: u32 = 6;

/// The types that the type1 driver implements.
const TYPES: [u32; 3] = [sys::VFIO_TYPE1_IOMMU, sys::VFIO_TYPE1v2_IOMMU, TYPE1_NESTING];

impl System {
    /// Opens `/dev/vfio/vfio` (`vfio_fops_open`).
    pub fn open_container(&self) -> Fd {
        let mut state = self.state();
        let id = ContainerId(state.next_id());
        state.containers.insert(id, Container::default());
        state.files.open(Kind::Container(id))
    }

    /// `VFIO_GET_API_VERSION`.
    ///
    /// # Errors
    ///
    /// `ENOTTY`: the file is no container.
    pub fn api_version(&self, container: Fd) -> io::Result<u32> {
        let state = self.state();
        match state.as_iommufd(container) {
            Some(_) => Ok(sys::VFIO_API_VERSION),
            None => state.container_id(container).map(|_| sys::VFIO_API_VERSION),
        }
    }

    /// `VFIO_CHECK_EXTENSION` (`vfio_ioctl_check_extension`): 0 for an extension that the kernel
    /// does not have. Until an IOMMU is set, the kernel asks each driver that the groups can use;
    /// afterwards it asks the driver that was set.
    ///
    /// # Errors
    ///
    /// `ENOTTY`: the file is no container.
    pub fn check_extension(&self, container: Fd, extension: u64) -> io::Result<u32> {
        let mut state = self.state();
        if let Some(iommufd) = state.as_iommufd(container) {
            return state.compat_extension(iommufd, extension);
        }
        let container = state.container(state.container_id(container)?)?;
        let noiommu = || noiommu_extension(&state.description, extension);
        let type1 = |is_open| type1_extension(&state.description, extension, is_open);
        Ok(match (&container.iommu, container.groups.is_empty()) {
            (Some(Iommu::Type1(_)), _) => type1(true),
            (Some(Iommu::None), _) => noiommu(),
            (None, true) => noiommu().max(type1(false)),
            (None, false) if container.noiommu => noiommu(),
            (None, false) => type1(false),
        })
    }

    /// `VFIO_SET_IOMMU` (`vfio_ioctl_set_iommu`): sets the IOMMU of the container's groups.
    ///
    /// # Errors
    ///
    /// - `ENOTTY`: the file is no container.
    /// - `ENODEV`: an iommufd has no group, or no address space of groups any more.
    /// - `EINVAL`: the container has no group, has an IOMMU already, or has groups that cannot
    ///   share one; or the type is an extension and no IOMMU.
    /// - `ENODEV`: no driver has the type.
    /// - `EINVAL`, `EPERM`: the IOMMU refuses nesting ([`Description::nesting_error`]).
    /// - `EPERM`: the IOMMU does not remap interrupts, or the process lacks `CAP_SYS_RAWIO` for
    ///   groups without an IOMMU.
    pub fn set_iommu(&self, container: Fd, kind: u64) -> io::Result<()> {
        let mut state = self.state();
        if let Some(iommufd) = state.as_iommufd(container) {
            return state.compat_set_iommu(iommufd, kind);
        }
        let id = state.container_id(container)?;
        let container = state.container(id)?;
        if container.groups.is_empty() || container.iommu.is_some() {
            return Err(errno(libc::EINVAL));
        }
        if !state.description.can_share(&container.groups) {
            return Err(errno(libc::EINVAL));
        }
        let iommu = match container.noiommu {
            true => open_noiommu(&state.description, kind)?,
            false => open_type1(&state.description, kind)?,
        };
        state.container_mut(id)?.iommu = Some(iommu);
        Ok(())
    }

    /// `VFIO_IOMMU_MAP_DMA` (`vfio_dma_do_map`).
    ///
    /// # Errors
    ///
    /// In the order in which the kernel checks:
    /// - `EINVAL`: `argsz` is too small, a flag is unknown, no access is asked for, a value is not
    ///   aligned to the IOMMU's smallest page, the size is 0, or an end is past 2^64.
    /// - `EEXIST`: the range overlaps a mapping.
    /// - `ENOSPC`: the number of mappings is at its limit.
    /// - `EINVAL`: the IOMMU cannot translate the range.
    /// - `ENOMEM`: the memory exceeds `RLIMIT_MEMLOCK`.
    /// - `EFAULT`: the process has no such memory, or cannot write it.
    pub fn map_dma(&self, container: Fd, call: &MapDma) -> io::Result<()> {
        let mut state = self.state();
        match state.as_iommufd(container) {
            Some(iommufd) => state.compat_map(iommufd, call),
            None => state.type1(container, |type1, iova, process| type1.map(call, iova, process)),
        }
    }

    /// `VFIO_IOMMU_UNMAP_DMA` (`vfio_dma_do_unmap`): the number of bytes that were unmapped, which
    /// may be 0.
    ///
    /// # Errors
    ///
    /// `EINVAL`: `argsz` is too small, a flag is unknown, the range is not aligned, is empty or
    /// ends past 2^64, or a type1v2 unmap would bisect a mapping.
    pub fn unmap_dma(&self, container: Fd, call: &UnmapDma) -> io::Result<u64> {
        let mut state = self.state();
        if let Some(iommufd) = state.as_iommufd(container) {
            return state.compat_unmap(iommufd, call);
        }
        let id = state.container_id(container).ok();
        let groups = id.and_then(|id| Some(state.containers.get(&id)?.groups.clone()));
        let groups = groups.unwrap_or_default();
        let notifies = state.notifiers.any(Notifier::Iommu, &groups);
        let unmapped =
            state.type1(container, |type1, _, process| type1.unmap(call, process, notifies));
        let (bytes, pinned) = unmapped?;
        state.notifiers.unmapped(&groups, pinned);
        Ok(bytes)
    }

    /// `VFIO_IOMMU_GET_INFO` (`vfio_iommu_type1_get_info`). The buffer holds
    /// `struct vfio_iommu_type1_info` and room for capabilities.
    ///
    /// # Errors
    ///
    /// `EINVAL`: `argsz` is too small.
    pub fn iommu_info(&self, container: Fd, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        match state.as_iommufd(container) {
            Some(iommufd) => state.compat_info(iommufd, buffer),
            None => state.type1(container, |type1, iova, _| type1.info(iova, buffer)),
        }
    }

    /// Where in the process's memory a device's access to `iova` goes, and how many bytes the
    /// mapping has from there on; `None` without a mapping.
    ///
    /// # Errors
    ///
    /// `ENOTTY` or `EINVAL`: the file is no container with a type1 IOMMU.
    pub fn translate(&self, container: Fd, iova: u64) -> io::Result<Option<(u64, u64)>> {
        self.state().type1(container, |type1, _, _| Ok(type1.translate(iova)))
    }

    /// The mappings of a container, in order.
    ///
    /// # Errors
    ///
    /// `ENOTTY`: the file is no container.
    pub fn mappings(&self, container: Fd) -> io::Result<Vec<Range<u64>>> {
        let state = self.state();
        Ok(match &state.container(state.container_id(container)?)?.iommu {
            Some(Iommu::Type1(type1)) => type1.mappings(),
            _ => Vec::new(),
        })
    }

    /// The number of containers. A group keeps its container after the container's fd is closed.
    pub fn containers(&self) -> usize {
        self.state().containers.len()
    }

    /// The bytes that mappings have locked.
    pub fn locked_memory(&self) -> u64 {
        self.state().process.locked()
    }
}

/// The answer of the type1 driver to `VFIO_CHECK_EXTENSION`; `is_open`: the driver is set.
fn type1_extension(description: &Description, extension: u64, is_open: bool) -> u32 {
    let is = |other: u32| extension == u64::from(other);
    let nests = description.kernel.has_nesting();
    let has = TYPES.into_iter().any(|kind| is(kind) && (kind != TYPE1_NESTING || nests))
        || is(sys::VFIO_DMA_CC_IOMMU) && is_open && description.coherent
        || is(sys::VFIO_UNMAP_ALL) && description.kernel.has_unmap_flags()
        || is(sys::VFIO_UPDATE_VADDR) && description.kernel.has_unmap_flags() && is_open;
    has.into()
}

/// The answer of the driver for groups without an IOMMU to `VFIO_CHECK_EXTENSION`.
fn noiommu_extension(description: &Description, extension: u64) -> u32 {
    u32::from(description.noiommu_mode && extension == u64::from(sys::VFIO_NOIOMMU_IOMMU))
}

/// `vfio_noiommu_open`.
fn open_noiommu(description: &Description, kind: u64) -> io::Result<Iommu> {
    match noiommu_extension(description, kind) {
        0 => Err(errno(libc::ENODEV)),
        _ if !description.raw_io => Err(errno(libc::EPERM)),
        _ => Ok(Iommu::None),
    }
}

/// `vfio_iommu_type1_open`, then `vfio_iommu_type1_attach_group`.
fn open_type1(description: &Description, kind: u64) -> io::Result<Iommu> {
    if type1_extension(description, kind, false) == 0 {
        return Err(errno(libc::ENODEV));
    }
    let nests = kind == u64::from(TYPE1_NESTING);
    let is_type = TYPES.iter().any(|known| u64::from(*known) == kind);
    if !is_type {
        return Err(errno(libc::EINVAL));
    }
    if let Some(error) = description.nesting_error.filter(|_| nests) {
        return Err(errno(error));
    }
    match description.interrupt_remapping {
        false => Err(errno(libc::EPERM)),
        true => Ok(Iommu::Type1(Type1::new(description, kind))),
    }
}

impl State {
    fn container_id(&self, fd: Fd) -> io::Result<ContainerId> {
        match self.files.kind(fd)? {
            Kind::Container(id) => Ok(id),
            _ => self.unknown_ioctl(fd),
        }
    }

    fn container(&self, id: ContainerId) -> io::Result<&Container> {
        self.containers.get(&id).ok_or_else(|| errno(libc::EINVAL))
    }

    fn container_mut(&mut self, id: ContainerId) -> io::Result<&mut Container> {
        self.containers.get_mut(&id).ok_or_else(|| errno(libc::EINVAL))
    }

    /// The error of an ioctl that the file does not implement. A container forwards such an ioctl
    /// to its IOMMU driver, and returns EINVAL without one (`vfio_fops_unl_ioctl`). So does a
    /// character device that is not bound (`vfio_device_fops_unl_ioctl`).
    pub fn unknown_ioctl<T>(&self, fd: Fd) -> io::Result<T> {
        let is_unready = match self.files.kind(fd)? {
            Kind::Container(id) => self.containers.get(&id).is_some_and(|c| c.iommu.is_none()),
            Kind::Cdev(address, cdev) => !self.has_access(address, cdev),
            _ => false,
        };
        Err(errno(if is_unready { libc::EINVAL } else { libc::ENOTTY }))
    }

    /// Attaches a group (`vfio_container_attach_group`).
    pub fn attach_group(&mut self, id: ContainerId, group: u32) -> io::Result<()> {
        let noiommu = self.description.noiommu.contains(&group);
        let container = self.container(id)?;
        if !container.groups.is_empty() && container.noiommu != noiommu {
            return Err(errno(libc::EPERM));
        }
        let is_owned = !self.is_viable(group) || self.bound_in(group).next().is_some();
        if self.description.kernel.claims_groups() && !noiommu && is_owned {
            return Err(errno(libc::EPERM));
        }
        if let Some(Iommu::Type1(type1)) = &container.iommu {
            self.check_type1(type1, &container.groups, group)?;
        }
        let container = self.container_mut(id)?;
        container.noiommu = noiommu;
        container.groups.push(group);
        Ok(())
    }

    /// Whether an IOMMU that has mappings accepts one more group
    /// (`vfio_iommu_type1_attach_group`).
    fn check_type1(&self, type1: &Type1, groups: &[u32], group: u32) -> io::Result<()> {
        if !self.description.can_share(&[groups, &[group]].concat()) {
            return Err(errno(libc::EINVAL));
        }
        // The kernel would have to pin memory whose address it does not have.
        if type1.lacks_vaddr() {
            return Err(errno(libc::EBUSY));
        }
        let mappings = type1.mappings();
        let is_mapped =
            |hole: &Range<u64>| mappings.iter().any(|mapped| ranges::overlap(mapped, hole));
        match self.reserved(group).any(is_mapped) {
            true => Err(errno(libc::EINVAL)),
            false => Ok(()),
        }
    }

    /// Detaches a group (`vfio_group_detach_container`). The last group takes the IOMMU with it.
    pub fn detach_group(&mut self, id: ContainerId, group: u32) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        container.groups.retain(|other| *other != group);
        let is_last = container.groups.is_empty();
        // The IOMMU driver holds the notifiers of unmaps.
        self.notifiers.unregister_all(Notifier::Iommu, group);
        if let Some(Iommu::Type1(mut type1)) = container.iommu.take_if(|_| is_last) {
            type1.unmap_all(&mut self.process);
        }
        self.free_container(id);
        self.finish_unbinds(group);
    }

    /// Frees a container that neither a file nor a group refers to.
    pub fn free_container(&mut self, id: ContainerId) {
        let is_used = self.files.exists(Kind::Container(id))
            || self.containers.get(&id).is_some_and(|container| !container.groups.is_empty());
        if !is_used {
            self.containers.remove(&id);
        }
    }

    fn reserved(&self, group: u32) -> impl Iterator<Item = &Range<u64>> {
        let all = self.description.reserved.iter();
        all.filter(move |(owner, _)| *owner == group).map(|(_, range)| range)
    }

    /// The IOVA ranges that all groups of a container can use.
    fn iova_ranges(&self, id: ContainerId) -> Vec<Range<u64>> {
        let groups = self.containers.get(&id).into_iter().flat_map(|container| &container.groups);
        let holes = groups.flat_map(|group| self.reserved(*group));
        holes.fold(self.description.iova_ranges.clone(), |free, hole| {
            free.into_iter().flat_map(|range| ranges::without(range, hole)).collect()
        })
    }

    /// Calls the type1 IOMMU of a container's fd with the IOVA ranges and the process.
    pub fn type1<T>(
        &mut self,
        fd: Fd,
        call: impl FnOnce(&mut Type1, &[Range<u64>], &mut Process) -> io::Result<T>,
    ) -> io::Result<T> {
        let Kind::Container(id) = self.files.kind(fd)? else {
            return self.unknown_ioctl(fd);
        };
        let iova_ranges = self.iova_ranges(id);
        match self.containers.get_mut(&id).and_then(|container| container.iommu.as_mut()) {
            Some(Iommu::Type1(type1)) => call(type1, &iova_ranges, &mut self.process),
            _ => self.unknown_ioctl(fd),
        }
    }
}
