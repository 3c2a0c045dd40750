//! Notifiers that drivers in the kernel register with the VFIO core 0.3 (drivers/vfio/vfio.c of
//! Linux 5.4).

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use crate::address::PciAddress;
use crate::errno::errno;
use crate::files::Fd;

/// A kind of notifier (`vfio_register_notifier`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notifier {
    /// `VFIO_IOMMU_NOTIFY`: memory with pinned pages is unmapped.
    Iommu,
    /// `VFIO_GROUP_NOTIFY`: KVM is linked with the group or unlinked from it.
    Group,
}

/// A call of a notifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// `VFIO_GROUP_NOTIFY_SET_KVM` with a KVM.
    Kvm(Fd),
    /// `VFIO_GROUP_NOTIFY_SET_KVM` without a KVM.
    NoKvm,
    /// `VFIO_IOMMU_NOTIFY_DMA_UNMAP`. The driver has unpinned its pages in this mapping, as it
    /// must.
    Unmap(Range<u64>),
}

/// All notifiers and their calls.
#[derive(Debug, Default)]
pub(crate) struct Notifiers {
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
    /// A notifier that is unregistered keeps its past calls.
    is_registered: bool,
    calls: Vec<Notice>,
}

impl Notifiers {
    /// Registers a notifier. Where the group has a KVM, the kernel calls all notifiers of its
    /// chain again.
    pub fn register(&mut self, device: PciAddress, group: u32, kind: Notifier) -> u64 {
        let id = self.next;
        self.next = id.wrapping_add(1);
        let new = Registered { device, group, kind, is_registered: true, calls: Vec::new() };
        self.all.insert(id, new);
        match self.kvms.get(&group).copied() {
            Some(kvm) if kind == Notifier::Group => {
                self.call(Notifier::Group, &[group], &Notice::Kvm(kvm));
            }
            _ => {}
        }
        id
    }

    /// Unregisters a notifier: ENOENT where it is not registered.
    pub fn unregister(&mut self, id: u64) -> io::Result<()> {
        let notifier = self.all.get_mut(&id).filter(|notifier| notifier.is_registered);
        notifier.ok_or_else(|| errno(libc::ENOENT))?.is_registered = false;
        Ok(())
    }

    /// Unregisters all notifiers of a group.
    pub fn unregister_all(&mut self, kind: Notifier, group: u32) {
        for notifier in self.registered(kind, &[group]) {
            notifier.is_registered = false;
        }
    }

    fn registered(
        &mut self,
        kind: Notifier,
        groups: &[u32],
    ) -> impl Iterator<Item = &mut Registered> {
        let is_it = move |notifier: &&mut Registered| notifier.is(kind, groups);
        self.all.values_mut().filter(is_it)
    }

    fn call(&mut self, kind: Notifier, groups: &[u32], notice: &Notice) {
        for notifier in self.registered(kind, groups) {
            notifier.calls.push(notice.clone());
        }
    }

    /// Whether one of the groups has a notifier of this kind.
    pub fn any(&self, kind: Notifier, groups: &[u32]) -> bool {
        self.all.values().any(|notifier| notifier.is(kind, groups))
    }

    /// KVM was linked with a group, or unlinked (`vfio_group_set_kvm`).
    pub fn set_kvm(&mut self, group: u32, kvm: Option<Fd>) {
        match kvm {
            Some(kvm) => drop(self.kvms.insert(group, kvm)),
            None => drop(self.kvms.remove(&group)),
        }
        self.call(Notifier::Group, &[group], &kvm.map_or(Notice::NoKvm, Notice::Kvm));
    }

    /// Mappings with pinned pages were unmapped.
    pub fn unmapped(&mut self, groups: &[u32], mappings: Vec<Range<u64>>) {
        for mapping in mappings {
            self.call(Notifier::Iommu, groups, &Notice::Unmap(mapping));
        }
    }

    /// The device that a notifier was registered for.
    pub fn device(&self, id: u64) -> Option<PciAddress> {
        self.all.get(&id).map(|notifier| notifier.device)
    }

    /// The calls of a notifier.
    pub fn calls(&self, id: u64) -> Vec<Notice> {
        self.all.get(&id).map(|notifier| notifier.calls.clone()).unwrap_or_default()
    }
}

impl Registered {
    fn is(&self, kind: Notifier, groups: &[u32]) -> bool {
        self.is_registered && self.kind == kind && groups.contains(&self.group)
    }
}
