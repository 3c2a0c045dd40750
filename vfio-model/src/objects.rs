//! The objects of an iommufd, which have numbers (`struct iommufd_ctx`).

use std::collections::BTreeMap;
use std::io;

use crate::address::PciAddress;
use crate::describe::Description;
use crate::errno::errno;
use crate::files::{CdevId, IommufdId};
use crate::ioas::{Ioas, IoasMap};
use crate::process::Account;

/// `struct iommu_option`, for [`System::iommu_option`](crate::System::iommu_option).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IommuOption {
    /// [`IommuOption::RLIMIT_MODE`] or [`IommuOption::HUGE_PAGES`].
    pub option: u32,
    /// [`IommuOption::SET`] or [`IommuOption::GET`].
    pub op: u16,
    /// The number of the address space; 0 for an option of all objects.
    pub object: u32,
    /// The value to set.
    pub value: u64,
}

impl IommuOption {
    /// `IOMMU_OPTION_RLIMIT_MODE`: 0 counts locked memory by user, 1 by process.
    pub const RLIMIT_MODE: u32 = 0;
    /// `IOMMU_OPTION_HUGE_PAGES`: 0 maps an address space in the smallest pages.
    pub const HUGE_PAGES: u32 = 1;
    /// `IOMMU_OPTION_OP_SET`
    pub const SET: u16 = 0;
    /// `IOMMU_OPTION_OP_GET`
    pub const GET: u16 = 1;
}

/// What a number of an iommufd names (`struct iommufd_object`).
#[derive(Debug)]
pub(crate) enum Object {
    Ioas(Ioas),
    /// A device that is bound.
    Device,
    /// A mock device, with the number of its bind.
    Mock {
        device: u32,
    },
    /// A page table of an address space, which the kernel makes when a device is attached
    /// (`struct iommufd_hwpt_paging`).
    PageTable {
        ioas: u32,
    },
}

/// The devices of a group that are attached, and their common page table
/// (`struct iommufd_group`).
#[derive(Debug)]
pub(crate) struct Attachment {
    pub page_table: u32,
    pub devices: Vec<PciAddress>,
}

/// `struct iommufd_ctx`.
#[derive(Debug, Default)]
pub(crate) struct Iommufd {
    pub objects: BTreeMap<u32, Object>,
    /// By group.
    pub attachments: BTreeMap<u32, Attachment>,
    pub account: Account,
    /// The address space of groups whose container is the iommufd.
    pub compat: Option<u32>,
    /// Groups without an IOMMU use the iommufd.
    pub no_iommu: bool,
}

/// The bind of a device to an iommufd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// The file that is bound; `None` for a device that its group opened.
    pub cdev: Option<CdevId>,
    pub iommufd: IommufdId,
    /// The device's number in the iommufd.
    pub id: u32,
}

impl Iommufd {
    /// Gives an object the lowest number that is free.
    pub fn add(&mut self, object: Object) -> u32 {
        let id = (1..=u32::MAX).find(|id| !self.objects.contains_key(id)).unwrap_or(u32::MAX);
        self.objects.insert(id, object);
        id
    }

    pub fn ioas(&mut self, id: u32) -> io::Result<&mut Ioas> {
        match self.objects.get_mut(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(errno(libc::ENOENT)),
        }
    }

    /// The address space of a map, after the checks of its arguments, which are the same for all
    /// kinds of memory (`iommufd_ioas_map`). `numbers` are the IOVA and the length.
    pub fn ioas_to_map(&mut self, flags: u32, numbers: [u64; 2], id: u32) -> io::Result<&mut Ioas> {
        let access = IoasMap::READABLE | IoasMap::WRITEABLE;
        if flags & !(access | IoasMap::FIXED_IOVA) != 0 {
            return Err(errno(libc::EOPNOTSUPP));
        }
        if numbers.contains(&u64::MAX) {
            return Err(errno(libc::EOVERFLOW));
        }
        if flags & access == 0 {
            return Err(errno(libc::EINVAL));
        }
        self.ioas(id)
    }

    /// `iommufd_option_rlimit_mode`.
    pub fn rlimit_mode(
        &mut self,
        call: &IommuOption,
        description: &Description,
    ) -> io::Result<u64> {
        match call.op {
            _ if call.object != 0 => return Err(errno(libc::EOPNOTSUPP)),
            IommuOption::GET => return Ok((self.account == Account::Process).into()),
            IommuOption::SET if !description.resource => return Err(errno(libc::EPERM)),
            IommuOption::SET if !self.objects.is_empty() => return Err(errno(libc::EBUSY)),
            IommuOption::SET => {}
            _ => return Err(errno(libc::EOPNOTSUPP)),
        }
        self.account = match call.value {
            0 => Account::User,
            1 => Account::Process,
            _ => return Err(errno(libc::EINVAL)),
        };
        Ok(call.value)
    }

    /// `iommufd_ioas_option_huge_pages`.
    pub fn huge_pages(&mut self, call: &IommuOption) -> io::Result<u64> {
        let ioas = self.ioas(call.object)?;
        match (call.op, call.value) {
            (IommuOption::GET, _) => return Ok((!ioas.small_pages).into()),
            (IommuOption::SET, 0) => ioas.use_small_pages()?,
            (IommuOption::SET, 1) => ioas.use_large_pages(),
            (IommuOption::SET, _) => return Err(errno(libc::EINVAL)),
            _ => return Err(errno(libc::EOPNOTSUPP)),
        }
        Ok(call.value)
    }
}
