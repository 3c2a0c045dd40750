//! Devices and page tables of an iommufd (drivers/iommu/iommufd/device.c).
//!
//! All devices of a group share a page table. An address space has one page table for all groups
//! that can share it.

use std::io;

use crate::address::PciAddress;
use crate::describe::Description;
use crate::errno::errno;
use crate::ioas::Owner;
use crate::objects::{Attachment, Iommufd, Object};
use crate::process::Process;

/// A device that is bound to the iommufd.
#[derive(Clone, Copy)]
pub(crate) struct Endpoint<'a> {
    pub address: PciAddress,
    pub group: u32,
    pub description: &'a Description,
}

impl Iommufd {
    /// Attaches a device to the object `id`, or moves it there: the number of its page table
    /// (`iommufd_device_change_pt`).
    pub fn attach(
        &mut self,
        device: Endpoint<'_>,
        id: u32,
        process: &mut Process,
    ) -> io::Result<u32> {
        let page_tables = match self.objects.get(&id) {
            None => return Err(errno(libc::ENOENT)),
            Some(Object::Device | Object::Mock { .. }) => return Err(errno(libc::EINVAL)),
            Some(Object::PageTable { .. }) => {
                return self.enter(device, id, process).map(|()| id);
            }
            Some(Object::Ioas(ioas)) => ioas.page_tables.clone(),
        };
        for (page_table, _) in page_tables {
            match self.enter(device, page_table, process) {
                // The page table does not suit the device; another may.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                result => return result.map(|()| page_table),
            }
        }
        self.enter_new(device, id, process)
    }

    /// Makes a page table for the device (`iommufd_hwpt_paging_alloc`).
    fn enter_new(
        &mut self,
        device: Endpoint<'_>,
        ioas: u32,
        process: &mut Process,
    ) -> io::Result<u32> {
        let id = self.add(Object::PageTable { ioas });
        let entered = match self.is_attached(device) {
            // The memory is pinned before the device moves.
            true => self
                .ioas(ioas)
                .and_then(|ioas| ioas.add_page_table(id, device.description, process))
                .and_then(|()| self.enter(device, id, process)),
            false => self.enter(device, id, process).and_then(|()| {
                let ioas = self.ioas(ioas)?;
                ioas.add_page_table(id, device.description, process)
            }),
        };
        if entered.is_err() {
            self.leave_new(device, id, process);
        }
        entered.map(|()| id)
    }

    /// Undoes a part of [`enter_new`](Self::enter_new).
    fn leave_new(&mut self, device: Endpoint<'_>, id: u32, process: &mut Process) {
        let attachment = self.attachments.get(&device.group);
        if attachment.is_some_and(|attachment| attachment.page_table == id) {
            self.detach(device, process);
        }
        self.free_page_table(id, process);
    }

    fn enter(
        &mut self,
        device: Endpoint<'_>,
        page_table: u32,
        process: &mut Process,
    ) -> io::Result<()> {
        match self.is_attached(device) {
            true => self.replace(device, page_table, process),
            false => self.join(device, page_table),
        }
    }

    /// The first attachment of a device (`iommufd_hw_pagetable_attach`).
    fn join(&mut self, device: Endpoint<'_>, page_table: u32) -> io::Result<()> {
        let attachment = self.attachments.get(&device.group);
        let is_first = attachment.is_none();
        if attachment.is_some_and(|attachment| attachment.page_table != page_table) {
            return Err(errno(libc::EINVAL));
        }
        let suits = !is_first || self.suits(device, page_table);
        let ioas = self.ioas_of(page_table)?;
        let owner = Owner::Device(device.address);
        ioas.reserve(owner, &device.description.reserved_spans(device.group))?;
        if !suits {
            ioas.release(owner);
            return Err(errno(libc::EINVAL));
        }
        let attachment = self.attachments.entry(device.group);
        let attachment = attachment.or_insert(Attachment { page_table, devices: Vec::new() });
        attachment.devices.push(device.address);
        Ok(())
    }

    /// Moves all devices of the device's group (`iommufd_device_do_replace`).
    fn replace(
        &mut self,
        device: Endpoint<'_>,
        page_table: u32,
        process: &mut Process,
    ) -> io::Result<()> {
        let Some(attachment) = self.attachments.get(&device.group) else {
            return Err(errno(libc::EINVAL));
        };
        let (before, devices) = (attachment.page_table, attachment.devices.clone());
        if before == page_table {
            return Ok(());
        }
        let moves = self.ioas_number(before)? != self.ioas_number(page_table)?;
        if moves {
            self.reserve_for(&devices, device, page_table)?;
        }
        if !self.suits(device, page_table) {
            if moves {
                self.release_for(&devices, page_table);
            }
            return Err(errno(libc::EINVAL));
        }
        if moves {
            self.release_for(&devices, before);
        }
        if let Some(attachment) = self.attachments.get_mut(&device.group) {
            attachment.page_table = page_table;
        }
        self.put_page_table(before, process);
        Ok(())
    }

    /// Detaches a device that is attached (`iommufd_hw_pagetable_detach`).
    pub fn detach(&mut self, device: Endpoint<'_>, process: &mut Process) {
        let Some(attachment) = self.attachments.get_mut(&device.group) else {
            return;
        };
        let page_table = attachment.page_table;
        let before = attachment.devices.len();
        attachment.devices.retain(|address| *address != device.address);
        let (is_last, was_attached) =
            (attachment.devices.is_empty(), attachment.devices.len() < before);
        if is_last {
            self.attachments.remove(&device.group);
        }
        if was_attached {
            self.release_for(&[device.address], page_table);
            self.put_page_table(page_table, process);
        }
    }

    fn is_attached(&self, device: Endpoint<'_>) -> bool {
        let attachment = self.attachments.get(&device.group);
        attachment.is_some_and(|attachment| attachment.devices.contains(&device.address))
    }

    /// Whether the IOMMU can use a page table for the device's group, too.
    fn suits(&self, device: Endpoint<'_>, page_table: u32) -> bool {
        let users = self.attachments.iter().filter(|(_, users)| users.page_table == page_table);
        let groups: Vec<u32> = users.map(|(group, _)| *group).chain([device.group]).collect();
        device.description.can_share(&groups)
    }

    fn ioas_number(&self, page_table: u32) -> io::Result<u32> {
        match self.objects.get(&page_table) {
            Some(Object::PageTable { ioas }) => Ok(*ioas),
            _ => Err(errno(libc::ENOENT)),
        }
    }

    fn ioas_of(&mut self, page_table: u32) -> io::Result<&mut crate::ioas::Ioas> {
        let ioas = self.ioas_number(page_table)?;
        self.ioas(ioas)
    }

    /// Reserves IOVAs for all devices of a group, or for none.
    fn reserve_for(
        &mut self,
        devices: &[PciAddress],
        device: Endpoint<'_>,
        page_table: u32,
    ) -> io::Result<()> {
        let spans = device.description.reserved_spans(device.group);
        let ioas = self.ioas_of(page_table)?;
        let mut owners = devices.iter().map(|address| Owner::Device(*address));
        let reserved = owners.try_for_each(|owner| ioas.reserve(owner, &spans));
        reserved.inspect_err(|_| self.release_for(devices, page_table))
    }

    fn release_for(&mut self, devices: &[PciAddress], page_table: u32) {
        if let Ok(ioas) = self.ioas_of(page_table) {
            devices.iter().for_each(|address| ioas.release(Owner::Device(*address)));
        }
    }

    /// Frees a page table that no device uses any more (`iommufd_hw_pagetable_put`).
    fn put_page_table(&mut self, id: u32, process: &mut Process) {
        if !self.attachments.values().any(|users| users.page_table == id) {
            self.free_page_table(id, process);
        }
    }

    fn free_page_table(&mut self, id: u32, process: &mut Process) {
        if let Ok(ioas) = self.ioas_of(id) {
            ioas.remove_page_table(id, process);
            self.objects.remove(&id);
        }
    }
}
