//! The VFIO core's interface for drivers in the kernel, such as mediated devices: notifiers and
//! pinned pages (core 0.3, as in Linux 5.4).

use std::io;

use crate::address::PciAddress;
use crate::describe::Driver;
use crate::errno::errno;
use crate::files::{Fd, Kind};
use crate::notifiers::{Notice, Notifier};
use crate::state::{Iommu, State, System};
use crate::type1::Type1;

/// `VFIO_PIN_PAGES_MAX_ENTRIES`.
const MAX_PAGES: usize = 4096 / 8;

/// Each kind of notifier has one event, whose bit is 1.
const EVENT: u64 = 1;

impl System {
    /// `vfio_register_notifier`: a driver of a device registers a notifier. Where the group is
    /// linked with a KVM, the kernel calls all notifiers of the kind [`Notifier::Group`] again.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `events` is not 1, or the group has no container with an IOMMU.
    /// - `ENODEV`: vfio-pci has no device of the group.
    pub fn register_notifier(
        &self,
        device: PciAddress,
        kind: Notifier,
        events: u64,
    ) -> io::Result<u64> {
        let mut state = self.state();
        if events == 0 {
            return Err(errno(libc::EINVAL));
        }
        let group = state.group_of_device(device)?;
        if events != EVENT || state.use_container(group).is_err() {
            return Err(errno(libc::EINVAL));
        }
        Ok(state.notifiers.register(device, group, kind))
    }

    /// `vfio_unregister_notifier`.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the notifier never was registered, or the group has no container with an IOMMU.
    /// - `ENODEV`: vfio-pci has no device of the group any more.
    /// - `ENOENT`: the notifier is not registered any more.
    pub fn unregister_notifier(&self, notifier: u64) -> io::Result<()> {
        let mut state = self.state();
        let device = state.notifiers.device(notifier).ok_or_else(|| errno(libc::EINVAL))?;
        let group = state.group_of_device(device)?;
        state.use_container(group).map_err(|_| errno(libc::EINVAL))?;
        state.notifiers.unregister(notifier)
    }

    /// The calls of a notifier so far.
    pub fn notices(&self, notifier: u64) -> Vec<Notice> {
        self.state().notifiers.calls(notifier)
    }

    /// `vfio_pin_pages`: a driver of a device pins pages, by their numbers in IOVA. Returns the
    /// numbers of the pages in the process's memory.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: there is no page, a page is not mapped, the group has no container with an
    ///   IOMMU, or none of the container's groups has a notifier of unmaps.
    /// - `E2BIG`: there are more than 512 pages.
    /// - `ENODEV`: vfio-pci has no device of the group.
    /// - `EPERM`: the group has no IOMMU, or a mapping lacks this access (`VFIO_DMA_MAP_FLAG_*`).
    /// - `EACCES`: the IOMMU is type1 of version 1.
    pub fn pin_pages(
        &self,
        device: PciAddress,
        pages: &[u64],
        access: u32,
    ) -> io::Result<Vec<u64>> {
        let mut state = self.state();
        let group = state.check_pages(device, pages)?;
        let id = state.memberships.get(&group);
        let container = id.and_then(|id| state.containers.get(id));
        let groups = container.map_or(&[][..], |container| container.groups.as_slice());
        let notifies = state.notifiers.any(Notifier::Iommu, groups);
        state.type1_of_group(group)?.pin(pages, access, notifies)
    }

    /// `vfio_unpin_pages`: unpins pages up to the first that is not mapped, and returns their
    /// number.
    ///
    /// # Errors
    ///
    /// The errors of [`pin_pages`](Self::pin_pages). `EINVAL`: the first page is not mapped.
    pub fn unpin_pages(&self, device: PciAddress, pages: &[u64]) -> io::Result<usize> {
        let mut state = self.state();
        let group = state.check_pages(device, pages)?;
        state.type1_of_group(group)?.unpin(pages)
    }
}

impl State {
    /// KVM was linked with a file, or unlinked.
    pub fn notify_kvm(&mut self, file: Kind, kvm: Option<Fd>) {
        if let Kind::Group(group) = file {
            self.notifiers.set_kvm(group, kvm);
        }
    }

    /// The group of a device. VFIO knows the group while vfio-pci has one of its devices.
    fn group_of_device(&self, device: PciAddress) -> io::Result<u32> {
        let group = self.entry(device)?.group;
        match self.description.has_driver(group, Driver::Vfio) {
            true => Ok(group),
            false => Err(errno(libc::ENODEV)),
        }
    }

    /// What the core checks for pages: their number, and that their group is ready.
    fn check_pages(&self, device: PciAddress, pages: &[u64]) -> io::Result<u32> {
        match pages.len() {
            0 => return Err(errno(libc::EINVAL)),
            1..=MAX_PAGES => {}
            _ => return Err(errno(libc::E2BIG)),
        }
        let group = self.group_of_device(device)?;
        self.use_container(group)?;
        Ok(group)
    }

    /// The type1 IOMMU of a group: ENOTTY for a driver that pins no pages.
    fn type1_of_group(&mut self, group: u32) -> io::Result<&mut Type1> {
        let id = self.memberships.get(&group);
        match id.and_then(|id| self.containers.get_mut(id)?.iommu.as_mut()) {
            Some(Iommu::Type1(type1)) => Ok(type1),
            _ => Err(errno(libc::ENOTTY)),
        }
    }
}
