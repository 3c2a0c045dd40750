//! The interface of the VFIO core for drivers in the kernel: notifiers of KVMs and of unmaps, and
//! pinned pages (core 0.3, as Linux 5.4 has it).

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use crate::PciAddress;
use crate::files::Kind;
use crate::{Driver, Fd, State, errno};

/// A kind of notifier (`vfio_register_notifier`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notifier {
    /// `VFIO_IOMMU_NOTIFY`: memory with pinned pages in it is unmapped.
    Iommu,
    /// `VFIO_GROUP_NOTIFY`: the group is linked with a KVM, or is so no more.
    Group,
}

/// A call of a notifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// `VFIO_GROUP_NOTIFY_SET_KVM`
    Kvm(Fd),
    /// `VFIO_GROUP_NOTIFY_SET_KVM`, with none.
    NoKvm,
    /// `VFIO_IOMMU_NOTIFY_DMA_UNMAP`: the driver has let go of the pages in this mapping, as it
    /// must.
    Unmap(Range<u64>),
}

/// `VFIO_PIN_PAGES_MAX_ENTRIES`
const MAX_PAGES: usize = 4096 / 8;

/// The one event that there is of each kind of notifier.
const EVENT: u64 = 1;

/// All notifiers, and their calls.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    /// The KVM of each group.
    kvms: BTreeMap<u32, Fd>,
    all: BTreeMap<u64, Registered>,
    next: u64,
}

#[derive(Debug)]
struct Registered {
    device: PciAddress,
    group: u32,
    kind: Notifier,
    /// Whether it is on the chain; its former calls stay if not.
    on: bool,
    told: Vec<Notice>,
}

impl Notices {
    fn tell(&mut self, kind: Notifier, of: impl Fn(u32) -> bool, notice: &Notice) {
        let all = self.all.values_mut();
        all.filter(|own| own.on && own.kind == kind && of(own.group))
            .for_each(|own| own.told.push(notice.clone()));
    }

    /// Empties the chain of a group whose user is gone.
    pub fn forget(&mut self, kind: Notifier, group: u32) {
        let all = self.all.values_mut();
        all.filter(|own| own.kind == kind && own.group == group).for_each(|own| own.on = false);
    }

    pub fn told(&self, notifier: u64) -> Vec<Notice> {
        self.all.get(&notifier).map(|own| own.told.clone()).unwrap_or_default()
    }
}

impl State {
    /// A file was linked with a KVM, or is so no more: calls the notifiers of that, and those that
    /// are registered later.
    pub fn tell_of_kvm(&mut self, kind: Kind, kvm: Option<Fd>) {
        let Kind::Group(group) = kind else {
            return;
        };
        match kvm {
            Some(kvm) => drop(self.notices.kvms.insert(group, kvm)),
            None => drop(self.notices.kvms.remove(&group)),
        }
        let notice = kvm.map_or(Notice::NoKvm, Notice::Kvm);
        self.notices.tell(Notifier::Group, |own| own == group, &notice);
    }

    /// The group of a device: there for VFIO while vfio-pci has one of its devices.
    fn group_of_device(&self, device: PciAddress) -> io::Result<u32> {
        let group = self.entry(device)?.group;
        match self.members(group).any(|(_, driver)| driver == Driver::Vfio) {
            true => Ok(group),
            false => Err(errno(libc::ENODEV)),
        }
    }

    pub fn register_notifier(
        &mut self,
        device: PciAddress,
        kind: Notifier,
        events: u64,
    ) -> io::Result<u64> {
        if events == 0 {
            return Err(errno(libc::EINVAL));
        }
        let group = self.group_of_device(device)?;
        if events != EVENT || self.use_container(group).is_err() {
            return Err(errno(libc::EINVAL));
        }
        let id = self.notices.next;
        self.notices.next = id.wrapping_add(1);
        let registered = Registered { device, group, kind, on: true, told: Vec::new() };
        self.notices.all.insert(id, registered);
        // What there is already is told again to all of the chain.
        if let Some(kvm) =
            self.notices.kvms.get(&group).copied().filter(|_| kind == Notifier::Group)
        {
            self.notices.tell(Notifier::Group, |own| own == group, &Notice::Kvm(kvm));
        }
        Ok(id)
    }

    pub fn unregister_notifier(&mut self, notifier: u64) -> io::Result<()> {
        let own = self.notices.all.get(&notifier).ok_or_else(|| errno(libc::EINVAL))?;
        let group = self.group_of_device(own.device)?;
        self.use_container(group).map_err(|_| errno(libc::EINVAL))?;
        let own = self.notices.all.get_mut(&notifier).filter(|own| own.on);
        own.ok_or_else(|| errno(libc::ENOENT))?.on = false;
        Ok(())
    }

    /// The groups of the container that a group is in.
    fn neighbours(&self, group: u32) -> Vec<u32> {
        let id = self.memberships.get(&group);
        let container = id.and_then(|id| self.containers.get(id));
        container.map(|container| container.groups.clone()).unwrap_or_default()
    }

    /// The group that has the pages, and whether it has a notifier of unmaps.
    fn pinning(&self, device: PciAddress, pages: &[u64]) -> io::Result<(u32, bool)> {
        if pages.is_empty() {
            return Err(errno(libc::EINVAL));
        }
        if pages.len() > MAX_PAGES {
            return Err(errno(libc::E2BIG));
        }
        let group = self.group_of_device(device)?;
        self.use_container(group)?;
        Ok((group, self.is_told_of_unmaps(&self.neighbours(group))))
    }

    pub fn is_told_of_unmaps(&self, groups: &[u32]) -> bool {
        let mut all = self.notices.all.values();
        all.any(|own| own.on && own.kind == Notifier::Iommu && groups.contains(&own.group))
    }

    pub fn pin_pages(
        &mut self,
        device: PciAddress,
        pages: &[u64],
        access: u32,
    ) -> io::Result<Vec<u64>> {
        let (group, is_told) = self.pinning(device, pages)?;
        self.type1_of(group)?.pin(pages, access, is_told)
    }

    pub fn unpin_pages(&mut self, device: PciAddress, pages: &[u64]) -> io::Result<usize> {
        let (group, _) = self.pinning(device, pages)?;
        self.type1_of(group)?.unpin(pages)
    }

    /// Mappings with pinned pages were unmapped.
    pub fn tell_of_unmaps(&mut self, groups: &[u32], unmapped: Vec<Range<u64>>) {
        for range in unmapped {
            self.notices.tell(Notifier::Iommu, |own| groups.contains(&own), &Notice::Unmap(range));
        }
    }
}
