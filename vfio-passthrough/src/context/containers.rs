//! Which container each group is in. A container holds groups that the same IOMMU mappings serve; a
//! group that none takes gets one of its own, with the same mappings.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::error::{Error, SET_CONTAINER, SET_IOMMU};
use crate::address::PciAddress;
use crate::backend::type1::Type1Container;
use crate::backend::{AddressSpace, ioctl};
use crate::counters::VfioCalls;
use crate::dma::{self, DmaSpace};

/// A group's file, to be attached.
pub(super) struct Opened<'a> {
    pub address: PciAddress,
    pub number: u32,
    pub file: &'a File,
    pub calls: &'a Arc<VfioCalls>,
}

impl Opened<'_> {
    fn failed(&self, call: &'static str) -> impl FnOnce(io::Error) -> Error {
        let (address, group) = (self.address, self.number);
        move |source| Error::Attach { address, group, call, source }
    }

    /// Attaches the group. `first`: the container has no group, and no IOMMU until it has this one.
    /// After a failure the group is attached only until its file is closed.
    fn attach(&self, container: &Type1Container, first: bool) -> Result<(), Error> {
        // Where the container has an IOMMU driver, this gives the group to it.
        ioctl::set_container(self.file, container).map_err(self.failed(SET_CONTAINER))?;
        if first {
            ioctl::set_iommu(container).map_err(self.failed(SET_IOMMU))?;
        }
        Ok(())
    }

    fn not_replayed(&self, source: dma::Error) -> Error {
        Error::Replay { address: self.address, group: self.number, source }
    }
}

/// The containers of a guest.
pub(super) struct Containers {
    dma: DmaSpace,
    containers: Vec<SharedContainer>,
}

struct SharedContainer {
    space: Arc<Type1Container>,
    groups: BTreeSet<u32>,
}

impl SharedContainer {
    fn new(space: Type1Container) -> Self {
        Self { space: Arc::new(space), groups: BTreeSet::new() }
    }
}

impl Containers {
    /// A container without a group.
    pub fn new(first: Type1Container) -> Self {
        Self { dma: DmaSpace::default(), containers: vec![SharedContainer::new(first)] }
    }

    /// What is mapped in all of them.
    pub fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    /// Attaches a group: where others are, if one of those containers takes it, else alone, and
    /// then with all that is mapped.
    pub fn join(&mut self, candidate: &Opened<'_>) -> Result<(), Error> {
        let group = candidate.number;
        for container in self.containers.iter_mut().filter(|own| !own.groups.is_empty()) {
            match candidate.attach(&container.space, false) {
                Ok(()) => {
                    container.groups.insert(group);
                    return Ok(());
                }
                // Whatever the reason: if it has nothing to do with sharing, it comes again below.
                Err(error) => log::info!("{error}; it is tried alone"),
            }
        }
        let mut own = self.take_idle(candidate)?;
        let attached = candidate.attach(&own.space, true);
        let add =
            |()| self.dma.add(own.space.clone()).map_err(|error| candidate.not_replayed(error));
        let result = attached.and_then(add);
        if result.is_ok() {
            own.groups.insert(group);
        }
        self.containers.push(own);
        result
    }

    /// A container without a group, in which the kernel has nothing mapped.
    fn take_idle(&mut self, candidate: &Opened<'_>) -> Result<SharedContainer, Error> {
        match self.containers.iter().position(|own| own.groups.is_empty()) {
            Some(index) => Ok(self.containers.remove(index)),
            None => Ok(SharedContainer::new(Type1Container::open(candidate.calls.clone())?)),
        }
    }

    /// A group is about to be detached. With the last one of a container the kernel drops the IOMMU
    /// and every mapping (vfio_group_detach_container), so they are ended before, and are there for
    /// the next one.
    pub fn leave(&mut self, group: u32) {
        let mut containers = self.containers.iter_mut();
        let Some(own) = containers.find_map(|own| own.groups.remove(&group).then_some(own)) else {
            return;
        };
        if own.groups.is_empty() {
            let space: Arc<dyn AddressSpace> = own.space.clone();
            self.dma.remove(&space);
        }
    }
}
