//! The containers of the groups. Groups that can use the same IOMMU mappings share a container. A
//! group that no container accepts gets its own container, with the same mappings.

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

/// The file of a group that is to be attached.
pub(super) struct Opened<'a> {
    pub address: PciAddress,
    pub number: u32,
    pub file: &'a File,
    pub calls: &'a Arc<VfioCalls>,
    /// Whether this process may open another container.
    pub may_open: bool,
}

impl Opened<'_> {
    fn failed(&self, call: &'static str) -> impl FnOnce(io::Error) -> Error {
        let (address, group) = (self.address, self.number);
        move |source| Error::Attach { address, group, call, source }
    }

    /// Attaches the group. `first` means that the container has no group, and no IOMMU until it has
    /// this group. After a failure, closing the group's file detaches it.
    fn attach(&self, container: &Type1Container, first: bool) -> Result<(), Error> {
        // If the container has an IOMMU driver, the kernel attaches the group to it.
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
    /// Has one container, without a group.
    pub fn new(first: Type1Container) -> Self {
        Self { dma: DmaSpace::default(), containers: vec![SharedContainer::new(first)] }
    }

    /// The mappings, which all containers share.
    pub fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    /// Attaches a group to the first container that accepts it beside its other groups. If none
    /// accepts it, the group gets its own container, with all existing mappings.
    pub fn join(&mut self, candidate: &Opened<'_>) -> Result<(), Error> {
        let group = candidate.number;
        let mut refused = None;
        for container in self.containers.iter_mut().filter(|own| !own.groups.is_empty()) {
            match candidate.attach(&container.space, false) {
                Ok(()) => {
                    container.groups.insert(group);
                    return Ok(());
                }
                // An error with another cause than sharing occurs again below.
                Err(error) => {
                    log::info!("{error}; the group needs its own container");
                    refused = Some(error);
                }
            }
        }
        let mut own = self.take_idle(candidate, refused)?;
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

    /// Takes a container without a group, in which nothing is mapped, or opens one. A process that
    /// may open none has the error of the containers that `refused` the group.
    fn take_idle(
        &mut self,
        candidate: &Opened<'_>,
        refused: Option<Error>,
    ) -> Result<SharedContainer, Error> {
        let idle = self.containers.iter().position(|own| own.groups.is_empty());
        match (idle, refused.filter(|_| !candidate.may_open)) {
            (Some(index), _) => Ok(self.containers.remove(index)),
            (None, Some(error)) => Err(error),
            (None, None) => {
                Ok(SharedContainer::new(Type1Container::open(candidate.calls.clone())?))
            }
        }
    }

    /// Removes a group, before it is detached. When a container's last group is detached, the
    /// kernel removes the IOMMU and all mappings (vfio_group_detach_container). So the mappings are
    /// unmapped before that, and are recorded for the next group. `detached` means that the kernel
    /// has detached the group by itself.
    pub fn leave(&mut self, group: u32, detached: bool) {
        let mut containers = self.containers.iter_mut();
        let Some(own) = containers.find_map(|own| own.groups.remove(&group).then_some(own)) else {
            return;
        };
        let space: Arc<dyn AddressSpace> = own.space.clone();
        match (own.groups.is_empty(), detached) {
            (true, true) => self.dma.forget(&space),
            (true, false) => self.dma.remove(&space),
            (false, _) => {}
        }
    }
}
