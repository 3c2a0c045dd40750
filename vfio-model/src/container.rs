//! `/dev/vfio/vfio`: containers, and the IOMMU that a container with groups can have.
//!
//! Anybody may open a container; what privilege it has comes from the groups in it. With the last
//! group, the IOMMU and all of its mappings go.

use std::io;
use std::ops::Range;

use vfio_bindings::bindings::vfio as sys;

use crate::driver::Notifier;
use crate::files::{ContainerId, Kind};
use crate::type1::Type1;
use crate::{Description, Fd, MapDma, State, UnmapDma, errno, ranges};

/// `VFIO_TYPE1_NESTING_IOMMU`, which newer headers do not have.
const TYPE1_NESTING: u32 = 6;

/// What type1 can be set as.
const TYPES: [u32; 3] = [sys::VFIO_TYPE1_IOMMU, sys::VFIO_TYPE1v2_IOMMU, TYPE1_NESTING];

/// A container.
#[derive(Debug, Default)]
pub(crate) struct Container {
    /// In the order in which they were added.
    pub groups: Vec<u32>,
    /// Whether its groups are such without an IOMMU; of no meaning while there are none.
    noiommu: bool,
    pub iommu: Option<Iommu>,
}

/// The IOMMU driver of a container.
#[derive(Debug)]
pub(crate) enum Iommu {
    Type1(Type1),
    /// Groups without an IOMMU have one that does nothing.
    None,
}

/// What type1 says to `VFIO_CHECK_EXTENSION`, before (`is_open` is false) or after it is set.
fn type1_extension(description: &Description, extension: u64, is_open: bool) -> u32 {
    let is = |other: u32| extension == u64::from(other);
    let has = TYPES.into_iter().any(is)
        || is(sys::VFIO_DMA_CC_IOMMU) && is_open && description.coherent
        || is(sys::VFIO_UNMAP_ALL) && description.kernel.has_unmap_flags()
        || is(sys::VFIO_UPDATE_VADDR) && description.kernel.has_unmap_flags() && is_open;
    has.into()
}

/// What the driver for groups without an IOMMU says.
fn noiommu_extension(description: &Description, extension: u64) -> u32 {
    u32::from(description.noiommu_mode && extension == u64::from(sys::VFIO_NOIOMMU_IOMMU))
}

impl State {
    fn container_of(&self, fd: Fd) -> io::Result<ContainerId> {
        match self.files.kind(fd)? {
            Kind::Container(id) => Ok(id),
            _ => Err(errno(libc::ENOTTY)),
        }
    }

    pub fn container(&mut self, id: ContainerId) -> io::Result<&mut Container> {
        self.containers.get_mut(&id).ok_or_else(|| errno(libc::EINVAL))
    }

    /// An ioctl on a file that does not know it. A container hands what it does not know to its
    /// IOMMU driver, and has an answer of its own where there is none.
    pub fn foreign<T>(&self, fd: Fd) -> io::Result<T> {
        let has_no_iommu = match self.files.kind(fd)? {
            Kind::Container(id) => self.containers.get(&id).is_some_and(|c| c.iommu.is_none()),
            _ => false,
        };
        Err(errno(if has_no_iommu { libc::EINVAL } else { libc::ENOTTY }))
    }

    pub fn api_version(&self, fd: Fd) -> io::Result<u32> {
        self.container_of(fd).map(|_| sys::VFIO_API_VERSION)
    }

    /// Until a driver is set, all that the container's groups could use are asked, then only that
    /// one.
    pub fn check_extension(&mut self, fd: Fd, extension: u64) -> io::Result<u32> {
        let id = self.container_of(fd)?;
        let description = &self.description;
        let container = self.containers.get(&id).ok_or_else(|| errno(libc::EINVAL))?;
        let noiommu = || noiommu_extension(description, extension);
        let type1 = |is_open| type1_extension(description, extension, is_open);
        Ok(match (&container.iommu, container.groups.is_empty()) {
            (Some(Iommu::Type1(_)), _) => type1(true),
            (Some(Iommu::None), _) => noiommu(),
            (None, true) => noiommu().max(type1(false)),
            (None, false) if container.noiommu => noiommu(),
            (None, false) => type1(false),
        })
    }

    /// `VFIO_SET_IOMMU`: every driver that says yes to the type is tried until one opens and takes
    /// all groups.
    pub fn set_iommu(&mut self, fd: Fd, kind: u64) -> io::Result<()> {
        let id = self.container_of(fd)?;
        let container = self.containers.get(&id).ok_or_else(|| errno(libc::EINVAL))?;
        if container.groups.is_empty() || container.iommu.is_some() {
            return Err(errno(libc::EINVAL));
        }
        let mut groups = container.groups.iter();
        if container.groups.len() > 1 && groups.any(|group| self.description.alone.contains(group))
        {
            return Err(errno(libc::EINVAL));
        }
        let iommu = match container.noiommu {
            true => self.open_noiommu(kind)?,
            false => self.open_type1(kind)?,
        };
        self.container(id)?.iommu = Some(iommu);
        Ok(())
    }

    fn open_noiommu(&self, kind: u64) -> io::Result<Iommu> {
        match noiommu_extension(&self.description, kind) {
            0 => Err(errno(libc::ENODEV)),
            _ if !self.description.raw_io => Err(errno(libc::EPERM)),
            _ => Ok(Iommu::None),
        }
    }

    fn open_type1(&self, kind: u64) -> io::Result<Iommu> {
        let description = &self.description;
        if type1_extension(description, kind, false) == 0 {
            return Err(errno(libc::ENODEV));
        }
        // An extension that is no type has passed until here.
        if !TYPES.iter().any(|known| u64::from(*known) == kind) {
            return Err(errno(libc::EINVAL));
        }
        let nests = kind == u64::from(TYPE1_NESTING);
        match description.interrupt_remapping {
            _ if nests && !description.nesting => Err(errno(libc::EINVAL)),
            false => Err(errno(libc::EPERM)),
            true => Ok(Iommu::Type1(Type1::new(description, kind))),
        }
    }

    /// A group joins. The IOMMU, where it is set already, may refuse it: its reserved addresses may
    /// be mapped.
    pub fn join(&mut self, id: ContainerId, group: u32) -> io::Result<()> {
        let noiommu = self.description.noiommu.contains(&group);
        let reserved: Vec<Range<u64>> = self.reserved(group).collect();
        let is_viable = self.is_viable(group);
        let claims = self.description.kernel.claims_groups();
        let alone = self.description.alone.clone();
        let container = self.container(id)?;
        if !container.groups.is_empty() && container.noiommu != noiommu {
            return Err(errno(libc::EPERM));
        }
        if claims && !noiommu && !is_viable {
            return Err(errno(libc::EPERM));
        }
        if let Some(Iommu::Type1(type1)) = &container.iommu {
            let mut all = container.groups.iter().chain([&group]);
            if !container.groups.is_empty() && all.any(|group| alone.contains(group)) {
                return Err(errno(libc::EINVAL));
            }
            // It would have to pin what is mapped, at addresses that there are not.
            if type1.lacks_vaddr() {
                return Err(errno(libc::EBUSY));
            }
            let mappings = type1.mappings();
            if reserved
                .iter()
                .any(|range| mappings.iter().any(|mapped| ranges::overlap(mapped, range)))
            {
                return Err(errno(libc::EINVAL));
            }
        }
        container.noiommu = noiommu;
        container.groups.push(group);
        Ok(())
    }

    /// A group leaves. The last takes the IOMMU with it.
    pub fn leave(&mut self, id: ContainerId, group: u32) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        container.groups.retain(|other| *other != group);
        let last = container.groups.is_empty();
        // The IOMMU has the chain of notifiers of unmaps.
        self.notices.forget(Notifier::Iommu, group);
        let iommu = container.iommu.take_if(|_| last);
        if let Some(Iommu::Type1(mut type1)) = iommu {
            type1.release(&mut self.process);
        }
        self.drop_container(id);
        self.finish_unbinds(group);
    }

    /// A container that nothing refers to goes.
    pub fn drop_container(&mut self, id: ContainerId) {
        let is_used = self.files.exists(Kind::Container(id))
            || self.containers.get(&id).is_some_and(|container| !container.groups.is_empty());
        if !is_used {
            self.containers.remove(&id);
        }
    }

    fn reserved(&self, group: u32) -> impl Iterator<Item = Range<u64>> {
        let all = self.description.reserved.iter();
        all.filter(move |(of, _)| *of == group).map(|(_, range)| range.clone())
    }

    /// What the groups of a container can be given.
    fn reach(&self, id: ContainerId) -> Vec<Range<u64>> {
        let groups = self.containers.get(&id).map(|container| container.groups.clone());
        let holes = groups.unwrap_or_default();
        let holes = holes.into_iter().flat_map(|group| self.reserved(group));
        holes.fold(self.description.reach.clone(), |reach, hole| {
            reach.into_iter().flat_map(|range| ranges::without(range, &hole)).collect()
        })
    }

    /// The type1 IOMMU of a container's fd; what answers where there is none.
    pub fn type1<T>(
        &mut self,
        fd: Fd,
        call: impl FnOnce(&mut Type1, &[Range<u64>], &mut super::type1::Process) -> io::Result<T>,
    ) -> io::Result<T> {
        let Kind::Container(id) = self.files.kind(fd)? else {
            return self.foreign(fd);
        };
        let reach = self.reach(id);
        match self.containers.get_mut(&id).and_then(|container| container.iommu.as_mut()) {
            Some(Iommu::Type1(type1)) => call(type1, &reach, &mut self.process),
            _ => self.foreign(fd),
        }
    }

    pub fn map_dma(&mut self, fd: Fd, call: &MapDma) -> io::Result<()> {
        self.type1(fd, |type1, reach, process| type1.map(call, reach, process))
    }

    pub fn unmap_dma(&mut self, fd: Fd, call: &UnmapDma) -> io::Result<u64> {
        let groups = self.groups_of(fd);
        let is_told = self.is_told_of_unmaps(&groups);
        let unmapped = self.type1(fd, |type1, _, process| type1.unmap(call, process, is_told));
        let (bytes, pinned) = unmapped?;
        self.tell_of_unmaps(&groups, pinned);
        Ok(bytes)
    }

    fn groups_of(&self, fd: Fd) -> Vec<u32> {
        let id = self.container_of(fd).ok();
        let container = id.and_then(|id| self.containers.get(&id));
        container.map(|container| container.groups.clone()).unwrap_or_default()
    }

    /// The type1 IOMMU of the container that a group is in; ENOTTY for one that pins nothing.
    pub fn type1_of(&mut self, group: u32) -> io::Result<&mut Type1> {
        let id = self.memberships.get(&group);
        let container = id.and_then(|id| self.containers.get_mut(id));
        match container.and_then(|container| container.iommu.as_mut()) {
            Some(Iommu::Type1(type1)) => Ok(type1),
            _ => Err(errno(libc::ENOTTY)),
        }
    }

    pub fn iommu_info(&mut self, fd: Fd, buffer: &mut [u8]) -> io::Result<()> {
        self.type1(fd, |type1, reach, _| type1.info(reach, buffer))
    }

    /// The mappings of a container.
    pub fn mappings(&self, fd: Fd) -> io::Result<Vec<Range<u64>>> {
        let id = self.container_of(fd)?;
        Ok(match self.containers.get(&id).and_then(|container| container.iommu.as_ref()) {
            Some(Iommu::Type1(type1)) => type1.mappings(),
            _ => Vec::new(),
        })
    }
}
