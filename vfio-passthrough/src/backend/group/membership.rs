//! Groups as members of a container.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use vfio_ioctls::VfioContainer;

use super::Container;
use super::error::{Error, SET_CONTAINER, SET_IOMMU};
use crate::address::PciAddress;
use crate::backend::ioctl;
use crate::backend::sysfs::Sysfs;
use crate::host::GroupLink;

/// The groups of a container. The kernel drops the IOMMU driver, and every mapping with it, when the last one
/// leaves.
#[derive(Default)]
pub(super) struct Groups {
    members: BTreeMap<u32, Member>,
    link: Option<Arc<dyn GroupLink>>,
}

/// A group that is attached. Dropping it tells the hypervisor, then detaches it: the kernel does so when the
/// file is closed (vfio_group_fops_release).
struct Member {
    users: usize,
    linked: Option<Linked>,
    file: Arc<File>,
}

impl Groups {
    /// No device is open.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The file of a group that is attached.
    pub fn file(&self, number: u32) -> Option<&Arc<File>> {
        self.members.get(&number).map(|member| &member.file)
    }

    /// One more user of a group, which is attached unless it is.
    pub fn join(
        &mut self,
        address: PciAddress,
        number: u32,
        vfio: &VfioContainer,
        sysfs: &Sysfs,
    ) -> Result<(), Error> {
        if !self.members.contains_key(&number) {
            let file = Arc::new(attach(address, number, vfio, sysfs, self.members.is_empty())?);
            let linked = self
                .link
                .clone()
                .map(|link| Linked::new(number, link, file.clone()));
            let linked = linked.transpose()?;
            self.members.insert(
                number,
                Member {
                    users: 0,
                    linked,
                    file,
                },
            );
        }
        if let Some(member) = self.members.get_mut(&number) {
            member.users = member.users.saturating_add(1);
        }
        Ok(())
    }

    fn leave(&mut self, number: u32) {
        let Some(member) = self.members.get_mut(&number) else {
            return;
        };
        member.users = member.users.saturating_sub(1);
        if member.users == 0 {
            self.members.remove(&number);
        }
    }

    /// Tells another hypervisor of all groups. The former is told first that they are gone, since the kernel
    /// keeps one VM a group (vfio_file_set_kvm).
    pub fn link(&mut self, link: Arc<dyn GroupLink>) -> Result<(), Error> {
        self.link = Some(link.clone());
        self.members.values_mut().for_each(|member| member.linked = None);
        self.members.iter_mut().try_for_each(|(number, member)| {
            member.linked = Some(Linked::new(*number, link.clone(), member.file.clone())?);
            Ok(())
        })
    }
}

/// Opens a group and makes it a member. `first`: the container has no IOMMU driver yet.
fn attach(
    address: PciAddress,
    group: u32,
    vfio: &VfioContainer,
    sysfs: &Sysfs,
    first: bool,
) -> Result<File, Error> {
    let path = Path::new("/dev/vfio").join(group.to_string());
    let opened = OpenOptions::new().read(true).write(true).open(path);
    let file = opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => Error::GroupBusy { address, group },
        _ => Error::OpenGroup {
            address,
            group,
            source,
        },
    })?;
    let failed = |call| {
        move |source| Error::Attach {
            address,
            group,
            call,
            source,
        }
    };
    if !ioctl::group_is_viable(&file).map_err(failed("VFIO_GROUP_GET_STATUS"))? {
        return Err(Error::NotReady(sysfs.not_viable(address, group)));
    }
    // Where the container has an IOMMU driver, this gives the group to it.
    ioctl::set_container(&file, vfio).map_err(failed(SET_CONTAINER))?;
    if first {
        ioctl::set_iommu(vfio).map_err(failed(SET_IOMMU))?;
    }
    Ok(file)
}

/// A group that a device uses: it stays attached while this lives.
pub(super) struct Membership {
    container: Arc<Container>,
    number: u32,
}

impl Membership {
    /// Attaches the group of `address` unless it is.
    pub fn new(container: &Arc<Container>, address: PciAddress, number: u32) -> Result<Self, Error> {
        container
            .groups()
            .join(address, number, &container.vfio, &container.sysfs)?;
        Ok(Self {
            container: container.clone(),
            number,
        })
    }

    /// The container.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Opens a device of the group.
    pub fn device(&self, address: PciAddress) -> io::Result<File> {
        let groups = self.container.groups();
        let group = groups.file(self.number).ok_or(io::ErrorKind::NotFound)?;
        ioctl::open_device(group, address)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.container.groups().leave(self.number);
    }
}

/// The hypervisor knows the group, until this is dropped.
struct Linked {
    link: Arc<dyn GroupLink>,
    file: Arc<File>,
}

impl Linked {
    fn new(group: u32, link: Arc<dyn GroupLink>, file: Arc<File>) -> Result<Self, Error> {
        link.add(file.as_fd())
            .map_err(|source| Error::Link { group, source })?;
        Ok(Self { link, file })
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        if let Err(error) = self.link.remove(self.file.as_fd()) {
            log::error!("KVM_DEV_VFIO_FILE_DEL: {error}; the hypervisor holds the IOMMU group until it ends");
        }
    }
}
