//! Groups as members of a container.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use super::Container;
use super::error::Error;
use super::spaces::{Opened, Spaces};
use super::type1::Type1;
use crate::address::PciAddress;
use crate::backend::ioctl;
use crate::backend::sysfs::Sysfs;
use crate::counters::VfioCalls;
use crate::dma::DmaSpace;
use crate::host::GroupLink;

/// The groups that are attached, and the containers that they are in.
pub(super) struct Groups {
    spaces: Spaces,
    members: BTreeMap<u32, Member>,
    link: Option<Arc<dyn GroupLink>>,
}

/// A group that is attached. Dropping it tells the hypervisor, then detaches it: the kernel does so
/// when the file is closed (vfio_group_fops_release).
struct Member {
    users: usize,
    linked: Option<Linked>,
    file: Arc<File>,
}

impl Groups {
    /// None yet, for this container.
    pub fn new(first: Type1) -> Self {
        Self { spaces: Spaces::new(first), members: BTreeMap::new(), link: None }
    }

    /// What is mapped for all of them.
    pub fn dma(&self) -> &DmaSpace {
        self.spaces.dma()
    }

    /// The file of a group that is attached.
    pub fn file(&self, number: u32) -> Option<&Arc<File>> {
        self.members.get(&number).map(|member| &member.file)
    }

    /// One more user of a group, which is attached unless it is: by the file `opened`, or by its
    /// node.
    pub fn join(
        &mut self,
        address: PciAddress,
        number: u32,
        opened: Option<File>,
        (sysfs, calls): (&Sysfs, &Arc<VfioCalls>),
    ) -> Result<(), Error> {
        if !self.members.contains_key(&number) {
            let file = opened.map_or_else(|| open(address, number), Ok)?;
            let file = Arc::new(viable(file, address, number, sysfs)?);
            let candidate = Opened { address, number, file: &file, calls };
            self.spaces.join(&candidate)?;
            let link = self.link.clone();
            let linked = link.map(|link| Linked::new(number, link, file.clone()));
            let linked = linked.transpose().inspect_err(|_| self.spaces.leave(number))?;
            let member = Member { users: 0, linked, file };
            self.members.insert(number, member);
        }
        if let Some(member) = self.members.get_mut(&number) {
            member.users = member.users.saturating_add(1);
        }
        Ok(())
    }

    /// A user of a group closes its device and is gone. The kernel may detach the group as soon as
    /// the device is closed, if the host wants all of the group back (vfio_device_remove_group):
    /// with the group's last user its mappings end before.
    fn leave(&mut self, number: u32, device: Option<File>) {
        let Some(member) = self.members.get_mut(&number) else {
            return;
        };
        member.users = member.users.saturating_sub(1);
        let is_last = member.users == 0;
        if is_last {
            self.spaces.leave(number);
        }
        // The kernel keeps a group open, and so closed to others, until the files of its devices
        // are closed.
        drop(device);
        if is_last {
            self.members.remove(&number);
        }
    }

    /// Tells another hypervisor of all groups. The former is told first that they are gone, since
    /// the kernel keeps one VM a group (vfio_file_set_kvm).
    pub fn link(&mut self, link: Arc<dyn GroupLink>) -> Result<(), Error> {
        self.link = Some(link.clone());
        self.members.values_mut().for_each(|member| member.linked = None);
        self.members.iter_mut().try_for_each(|(number, member)| {
            member.linked = Some(Linked::new(*number, link.clone(), member.file.clone())?);
            Ok(())
        })
    }
}

fn open(address: PciAddress, group: u32) -> Result<File, Error> {
    let path = Path::new("/dev/vfio").join(group.to_string());
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => Error::GroupBusy { address, group },
        _ => Error::OpenGroup { address, group, source },
    })
}

/// A group that is viable.
fn viable(file: File, address: PciAddress, group: u32, sysfs: &Sysfs) -> Result<File, Error> {
    let viable = ioctl::group_is_viable(&file).map_err(|source| Error::Attach {
        address,
        group,
        call: "VFIO_GROUP_GET_STATUS",
        source,
    })?;
    if viable { Ok(file) } else { Err(Error::NotReady(sysfs.not_viable(address, group))) }
}

/// A device of a group, which stays attached while this lives.
pub(super) struct Membership {
    container: Arc<Container>,
    number: u32,
    /// `None` until it is open, and while it is closed.
    device: Option<File>,
}

impl Membership {
    /// Attaches the group of `address` unless it is, by its open file where there is one, and opens
    /// the device.
    pub fn new(
        container: &Arc<Container>,
        address: PciAddress,
        number: u32,
        group: Option<File>,
    ) -> Result<Self, Error> {
        let mut groups = container.groups();
        groups.join(address, number, group, (&container.sysfs, &container.calls))?;
        let group = groups.file(number).cloned();
        drop(groups);
        let mut own = Self { container: container.clone(), number, device: None };
        let opened = group
            .ok_or_else(|| io::ErrorKind::NotFound.into())
            .and_then(|group| ioctl::open_device(&group, address));
        own.device = Some(opened.map_err(|source| Error::OpenDevice {
            address,
            call: "VFIO_GROUP_GET_DEVICE_FD",
            source,
        })?);
        Ok(own)
    }

    /// The container.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The device.
    pub fn device(&self) -> io::Result<&File> {
        self.device.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let device = self.device.take();
        self.container.groups().leave(self.number, device);
    }
}

/// The hypervisor knows the group, until this is dropped.
struct Linked {
    link: Arc<dyn GroupLink>,
    file: Arc<File>,
}

impl Linked {
    fn new(group: u32, link: Arc<dyn GroupLink>, file: Arc<File>) -> Result<Self, Error> {
        link.add(file.as_fd()).map_err(|source| Error::Link { group, source })?;
        Ok(Self { link, file })
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        if let Err(error) = self.link.remove(self.file.as_fd()) {
            log::error!(
                "KVM_DEV_VFIO_FILE_DEL: {error}; the hypervisor holds the IOMMU group until it ends"
            );
        }
    }
}
