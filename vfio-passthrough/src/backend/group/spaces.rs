//! Which container each group is in. A container holds groups that the same IOMMU mappings serve; a group
//! that none takes gets one of its own, with the same mappings.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;

use crate::backend::AddressSpace;
use crate::dma::{self, DmaSpace};

/// A group that is to be attached to one of the containers `S`. What it fails with is dropped where another
/// container takes it.
pub(crate) trait Candidate<S> {
    /// Why it is in none.
    type Error: Display;

    /// Attaches it. `first`: the container has no group, and no IOMMU until it has this one.
    ///
    /// # Errors
    ///
    /// It is not attached, or only until the caller lets go of its file.
    fn attach(&self, container: &S, first: bool) -> Result<(), Self::Error>;

    /// A container for it alone.
    fn open(&self) -> Result<S, Self::Error>;

    /// What is mapped could not be mapped for it.
    fn not_replayed(&self, error: dma::Error) -> Self::Error;
}

/// The containers of a guest.
pub(crate) struct Spaces<S> {
    dma: DmaSpace,
    containers: Vec<Container<S>>,
}

struct Container<S> {
    space: Arc<S>,
    groups: BTreeSet<u32>,
}

impl<S> Container<S> {
    fn new(space: S) -> Self {
        Self { space: Arc::new(space), groups: BTreeSet::new() }
    }
}

impl<S: AddressSpace + 'static> Spaces<S> {
    /// A container without a group.
    pub fn new(first: S) -> Self {
        Self { dma: DmaSpace::default(), containers: vec![Container::new(first)] }
    }

    /// What is mapped in all of them.
    pub fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    /// Attaches a group: where others are, if one of those containers takes it, else alone, and then with all
    /// that is mapped.
    pub fn join<C: Candidate<S>>(&mut self, group: u32, candidate: &C) -> Result<(), C::Error> {
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
    fn take_idle<C: Candidate<S>>(&mut self, candidate: &C) -> Result<Container<S>, C::Error> {
        match self.containers.iter().position(|own| own.groups.is_empty()) {
            Some(index) => Ok(self.containers.remove(index)),
            None => candidate.open().map(Container::new),
        }
    }

    /// A group is about to be detached. With the last one of a container the kernel drops the IOMMU and every
    /// mapping (vfio_group_detach_container), so they are ended before, and are there for the next one.
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
