//! The state of a system: the host's description, and what VFIO holds for open files.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::address::PciAddress;
use crate::describe::Description;
use crate::files::{ContainerId, Fd, Files, IommufdId};
use crate::hardware::Hardware;
use crate::irqs::Irqs;
use crate::notifiers::Notifiers;
use crate::objects::{Bound, Iommufd};
use crate::process::Process;
use crate::type1::Type1;

/// A host with `/dev/vfio` and `/dev/iommu`, and one process that uses it. See the [crate](crate).
#[derive(Debug)]
pub struct System {
    state: Mutex<State>,
}

/// A VF token: the bytes of a UUID, in the order of its text.
pub(crate) type Token = [u8; 16];

/// What the lock of a [`System`] protects.
#[derive(Debug)]
pub(crate) struct State {
    pub description: Description,
    pub files: Files,
    pub process: Process,
    pub containers: BTreeMap<ContainerId, Container>,
    pub iommufds: BTreeMap<IommufdId, Iommufd>,
    /// The last number of a container, an iommufd or a character device's file.
    last_id: u64,
    /// The container of each group that has one.
    pub memberships: BTreeMap<u32, ContainerId>,
    /// The iommufd of each group that has one as its container.
    pub iommufd_groups: BTreeMap<u32, IommufdId>,
    /// The devices that are open or that leave vfio-pci.
    pub devices: BTreeMap<PciAddress, Device>,
    /// The devices whose registers or memory were used.
    pub hardware: BTreeMap<PciAddress, Hardware>,
    pub notifiers: Notifiers,
    /// The tokens of physical functions, where a user set them.
    pub tokens: BTreeMap<PciAddress, Token>,
    /// Of all virtual machines.
    pub irqfds: Vec<Assigned>,
}

/// `struct vfio_container`.
#[derive(Debug, Default)]
pub(crate) struct Container {
    /// In the order in which they were attached.
    pub groups: Vec<u32>,
    /// Whether the groups have no IOMMU. The value has no meaning without groups.
    pub noiommu: bool,
    pub iommu: Option<Iommu>,
}

/// The IOMMU driver of a container.
#[derive(Debug)]
pub(crate) enum Iommu {
    Type1(Type1),
    /// The driver `vfio-noiommu`, which maps nothing.
    None,
}

/// An irqfd of a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub kvm: Fd,
    pub eventfd: Fd,
    pub gsi: u32,
}

/// What VFIO holds for a device.
#[derive(Debug, Default)]
pub(crate) struct Device {
    pub irqs: Irqs,
    /// While the device leaves vfio-pci: how often the user was requested to close it.
    pub requests: Option<u32>,
    /// The bind to an iommufd.
    pub bound: Option<Bound>,
}

impl System {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `CAP_SYS_RAWIO` to the process or takes it away. Open fds stay open.
    pub fn set_raw_io(&self, raw_io: bool) {
        self.state().description.raw_io = raw_io;
    }
}

impl State {
    /// A number for a container, an iommufd or a character device's file.
    pub fn next_id(&mut self) -> u64 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }
}

impl Description {
    /// Makes the system. Nothing is open in it.
    pub fn build(self) -> System {
        let state = State {
            process: Process::new(&self),
            description: self,
            files: Files::default(),
            containers: BTreeMap::new(),
            iommufds: BTreeMap::new(),
            last_id: 0,
            memberships: BTreeMap::new(),
            iommufd_groups: BTreeMap::new(),
            devices: BTreeMap::new(),
            hardware: BTreeMap::new(),
            notifiers: Notifiers::default(),
            tokens: BTreeMap::new(),
            irqfds: Vec::new(),
        };
        System { state: Mutex::new(state) }
    }
}
