//! Containers with groups in them, of which some share none.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::{Call, Faults, Iommu, errno, lock};
use crate::address::{ByteRange, PciAddress};
use crate::backend::group::Error;
use crate::backend::group::error::{SET_CONTAINER, SET_IOMMU};
use crate::backend::group::spaces::{Candidate, Spaces};
use crate::backend::{AddressSpace, IommuInfo};
use crate::dma::{self, DmaSpace};

/// The containers of a guest, by the rules of [`Container`](crate::Container).
pub struct Containers {
    faults: Arc<Faults>,
    refused: Mutex<BTreeSet<u32>>,
    opened: Mutex<Vec<Arc<Iommu>>>,
    spaces: Mutex<Spaces<Shared>>,
}

impl Containers {
    /// One container without a group.
    pub fn new(faults: Arc<Faults>) -> Self {
        let first = Arc::new(Iommu::new(faults.clone()));
        Self {
            faults,
            refused: Mutex::default(),
            opened: Mutex::new(vec![first.clone()]),
            spaces: Mutex::new(Spaces::new(Shared(first))),
        }
    }

    /// What is mapped in all of them.
    pub fn dma(&self) -> DmaSpace {
        lock(&self.spaces).dma().clone()
    }

    /// No container that has a group takes this one (`EINVAL`).
    pub fn refuse(&self, group: u32) {
        lock(&self.refused).insert(group);
    }

    /// The group of a device is attached.
    ///
    /// # Errors
    ///
    /// [`Error::Attach`], [`Error::Replay`].
    pub fn attach(&self, address: PciAddress, group: u32) -> Result<(), Error> {
        let candidate = Group { containers: self, address, group };
        lock(&self.spaces).join(group, &candidate)
    }

    /// The group is detached.
    pub fn detach(&self, group: u32) {
        lock(&self.spaces).leave(group);
    }

    /// What is mapped in each container, in the order in which they were opened.
    pub fn mappings(&self) -> Vec<Vec<ByteRange>> {
        lock(&self.opened).iter().map(|iommu| iommu.mappings()).collect()
    }
}

/// A container that a test looks into, too.
struct Shared(Arc<Iommu>);

impl AddressSpace for Shared {
    fn info(&self) -> io::Result<IommuInfo> {
        self.0.info()
    }

    unsafe fn map(&self, iova: u64, size: u64, host: *mut u8) -> io::Result<()> {
        // SAFETY: our caller promises what is asked for.
        unsafe { self.0.map(iova, size, host) }
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        self.0.unmap(iova, size)
    }
}

struct Group<'a> {
    containers: &'a Containers,
    address: PciAddress,
    group: u32,
}

impl Group<'_> {
    fn failed(&self, call: &'static str) -> impl FnOnce(io::Error) -> Error {
        let (address, group) = (self.address, self.group);
        move |source| Error::Attach { address, group, call, source }
    }
}

impl Candidate<Shared> for Group<'_> {
    type Error = Error;

    fn attach(&self, _: &Shared, first: bool) -> Result<(), Error> {
        let faults = &self.containers.faults;
        faults.pass(Call::SetContainer).map_err(self.failed(SET_CONTAINER))?;
        if first {
            faults.pass(Call::SetIommu).map_err(self.failed(SET_IOMMU))
        } else if lock(&self.containers.refused).contains(&self.group) {
            Err(self.failed(SET_CONTAINER)(errno(libc::EINVAL)))
        } else {
            Ok(())
        }
    }

    fn open(&self) -> Result<Shared, Error> {
        let faults = &self.containers.faults;
        faults.pass(Call::OpenContainer).map_err(Error::OpenContainer)?;
        let iommu = Arc::new(Iommu::new(faults.clone()));
        lock(&self.containers.opened).push(iommu.clone());
        Ok(Shared(iommu))
    }

    fn not_replayed(&self, source: dma::Error) -> Error {
        Error::Replay { address: self.address, group: self.group, source }
    }
}
