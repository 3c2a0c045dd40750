//! The attached groups, and their link to the hypervisor.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::containers::{Containers, Opened};
use super::error::Error;
use super::linked::Linked;
use super::nodes::{group_node, open_group};
use super::options::Found;
use crate::address::PciAddress;
use crate::backend::ioctl;
use crate::backend::sysfs::Sysfs;
use crate::backend::type1::Type1Container;
use crate::counters::VfioCalls;
use crate::dma::DmaSpace;
use crate::host::GroupLink;

/// The attached groups, and their containers.
pub(super) struct Groups {
    containers: Containers,
    members: BTreeMap<u32, Member>,
    link: Option<Arc<dyn GroupLink>>,
}

/// An attached group. Dropping it unlinks the group from the hypervisor, then closes the group's
/// file: the kernel detaches the group when its file is closed (vfio_group_fops_release).
struct Member {
    users: usize,
    linked: Option<Linked>,
    file: Arc<File>,
}

impl Groups {
    /// Has no group yet. `first` is the container for the first group.
    pub fn new(first: Type1Container) -> Self {
        Self { containers: Containers::new(first), members: BTreeMap::new(), link: None }
    }

    /// The mappings, which all groups share.
    pub fn dma(&self) -> &DmaSpace {
        self.containers.dma()
    }

    /// The file of an attached group.
    pub fn file(&self, number: u32) -> Option<&Arc<File>> {
        self.members.get(&number).map(|member| &member.file)
    }

    /// Adds a user of a group. The first user attaches the group: by the passed file, or by opening
    /// the group's node.
    pub fn join(
        &mut self,
        address: PciAddress,
        number: u32,
        found: &mut Found,
        calls: &Arc<VfioCalls>,
    ) -> Result<(), Error> {
        if !self.members.contains_key(&number) {
            let open = |path: &Path| open_group(address, number, path);
            let file = found.open((address, group_node(number)), open)?;
            let file = Arc::new(viable(file, address, number, &found.sysfs)?);
            let may_open = found.may_open;
            let candidate = Opened { address, number, file: &file, calls, may_open };
            self.containers.join(&candidate)?;
            let link = self.link.clone();
            let linked = link.map(|link| Linked::new(&name(number), link, file.clone()));
            let linked =
                linked.transpose().inspect_err(|_| self.containers.leave(number, false))?;
            let member = Member { users: 0, linked, file };
            self.members.insert(number, member);
        }
        if let Some(member) = self.members.get_mut(&number) {
            member.users = member.users.saturating_add(1);
        }
        Ok(())
    }

    /// Removes a user of a group, whose device is closed. The last user detaches the group.
    ///
    /// The kernel detaches the group by itself if the host took all its devices
    /// (vfio_device_remove_group), as soon as the last one was closed.
    pub fn leave(&mut self, number: u32) {
        let Some(member) = self.members.get_mut(&number) else {
            return;
        };
        member.users = member.users.saturating_sub(1);
        if member.users == 0 {
            let detached = ioctl::group_is_detached(&member.file);
            self.containers.leave(number, detached);
            self.members.remove(&number);
        }
    }

    /// Links all groups with another hypervisor. It first ends the links with the previous one: the
    /// kernel keeps one VM for each group (vfio_file_set_kvm).
    pub fn link(&mut self, link: Arc<dyn GroupLink>) -> Result<(), Error> {
        self.link = Some(link.clone());
        self.members.values_mut().for_each(|member| member.linked = None);
        self.members.iter_mut().try_for_each(|(number, member)| {
            member.linked = Some(Linked::new(&name(*number), link.clone(), member.file.clone())?);
            Ok(())
        })
    }
}

fn name(group: u32) -> String {
    format!("IOMMU group {group}")
}

/// Returns the file if its group is viable.
fn viable(file: File, address: PciAddress, group: u32, sysfs: &Sysfs) -> Result<File, Error> {
    let viable = ioctl::group_is_viable(&file).map_err(|source| Error::Attach {
        address,
        group,
        call: "VFIO_GROUP_GET_STATUS",
        source,
    })?;
    if viable { Ok(file) } else { Err(Error::NotReady(sysfs.not_viable(address, group))) }
}
