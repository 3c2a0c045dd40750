//! A device of `vfio-model`, opened as a VMM opens it.

use std::io;
use std::sync::{Arc, Mutex};

use vfio_bindings::bindings::vfio as sys;
use vfio_model::{
    Description, Driver, Eventfd, Fd, IrqData, IrqSet, Kernel, PciAddress, PciFunction, System,
};
use vmm_sys_util::eventfd::EventFd;

use super::faults::{errno, lock};
use crate::backend::{BusMember, FewerVectors, SetIrqs};

/// The address of the device.
pub(super) const ADDRESS: PciAddress = PciAddress::new(0, 1, 0);

/// The device's group. The groups of its neighbours on the bus have the next numbers.
const GROUP: u32 = 0;

/// The description of a device.
#[derive(Debug)]
pub(super) struct Shape {
    /// Whether the kernel can add vectors to MSI-X.
    pub grows_msix: bool,
    /// The interrupt vectors of the host.
    pub host_vectors: u32,
    /// Whether the kernel reports that number.
    pub counts_vectors: bool,
    pub function: PciFunction,
    /// The functions on the bus; empty where the bus cannot be reset.
    pub bus: Vec<BusMember>,
}

/// An open device.
#[derive(Debug)]
pub(super) struct Opened {
    pub system: Arc<System>,
    /// The fds of the device's group and of its neighbours' groups that are ours.
    pub groups: Vec<Fd>,
    /// `None` after the close.
    pub file: Mutex<Option<Arc<DeviceFile>>>,
}

/// The device's file, which its last holder closes.
#[derive(Debug)]
pub(super) struct DeviceFile {
    pub system: Arc<System>,
    pub fd: Fd,
}

impl Shape {
    pub fn open(&self) -> io::Result<Opened> {
        let system = Arc::new(self.description().build());
        let (_, group) = open_type1(&system, GROUP)?;
        let fd = system.open_device(group, &ADDRESS.to_string())?;
        let ours = self.neighbours().filter(|(_, _, member)| member.ours);
        let others = ours.map(|(group, ..)| system.open_group(group));
        let groups = [Ok(group)].into_iter().chain(others).collect::<io::Result<_>>()?;
        let file = DeviceFile { system: system.clone(), fd };
        Ok(Opened { system, groups, file: Mutex::new(Some(Arc::new(file))) })
    }

    fn description(&self) -> Description {
        let kernel = match self.grows_msix {
            true => Kernel::Linux6_12,
            false => Kernel::Linux6_1,
        };
        let mut host = Description::new(kernel);
        host.host_vectors = self.host_vectors;
        host.counts_vectors = self.counts_vectors;
        let own = host.device(ADDRESS, GROUP, Driver::Vfio, self.function.clone());
        if self.bus.is_empty() {
            return own;
        }
        let all = self.neighbours().fold(own, |description, (group, address, member)| {
            let driver = if member.ours { Driver::Vfio } else { Driver::Host };
            description.device(address, group, driver, PciFunction::default())
        });
        all.bus(self.neighbours().map(|(_, address, _)| address).chain([ADDRESS]))
    }

    /// The other functions on the bus, in one group each.
    fn neighbours(&self) -> impl Iterator<Item = (u32, PciAddress, &BusMember)> {
        let groups = GROUP.saturating_add(1)..;
        groups.zip(&self.bus).filter_map(|(group, member)| {
            let address = member.address.to_string().parse().ok()?;
            (address != ADDRESS).then_some((group, address, member))
        })
    }
}

impl Opened {
    /// The device's file: ENODEV after the close.
    pub fn file(&self) -> io::Result<Arc<DeviceFile>> {
        lock(&self.file).clone().ok_or_else(|| errno(libc::ENODEV))
    }
}

impl Drop for DeviceFile {
    fn drop(&mut self) {
        // No error is possible: the fd is open.
        let _ = self.system.close(self.fd);
    }
}

impl DeviceFile {
    /// `VFIO_DEVICE_SET_IRQS`. The kernel holds the eventfds after their fds are closed.
    pub fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        let unmask;
        let (action, index, start, eventfds) = match call {
            SetIrqs::Trigger { index, start, eventfds } => {
                (sys::VFIO_IRQ_SET_ACTION_TRIGGER, index, start, eventfds)
            }
            SetIrqs::UnmaskOn { index, eventfd } => {
                unmask = [Some(eventfd.clone())];
                (sys::VFIO_IRQ_SET_ACTION_UNMASK, index, 0, unmask.as_slice())
            }
            SetIrqs::Disable { index } => {
                let flags = sys::VFIO_IRQ_SET_ACTION_TRIGGER | sys::VFIO_IRQ_SET_DATA_NONE;
                let set = IrqSet::new(flags, index, 0, 0, IrqData::None);
                return self.system.set_irqs(self.fd, &set);
            }
        };
        let fds: Vec<Fd> = eventfds.iter().map(|eventfd| self.open_eventfd(eventfd)).collect();
        let count = u32::try_from(fds.len()).map_err(|_| errno(libc::EINVAL))?;
        let flags = action | sys::VFIO_IRQ_SET_DATA_EVENTFD;
        let set = IrqSet::new(flags, index, start, count, IrqData::Eventfds(fds.clone()));
        let result = self.system.set_irqs(self.fd, &set).map_err(with_number);
        for fd in fds.into_iter().filter(|fd| *fd != NO_EVENTFD) {
            self.system.close(fd)?;
        }
        result
    }

    fn open_eventfd(&self, eventfd: &Option<Arc<EventFd>>) -> Fd {
        let own = eventfd.as_ref().map(|eventfd| Arc::new(Own(eventfd.clone())));
        own.map_or(NO_EVENTFD, |own| self.system.open_eventfd_of(own))
    }
}

/// The library's error for a host that has fewer vectors.
fn with_number(error: io::Error) -> io::Error {
    let fewer = error.get_ref().and_then(|inner| inner.downcast_ref());
    let had = fewer.map(|vfio_model::FewerVectors(had)| FewerVectors(*had));
    had.map_or(error, io::Error::from)
}

/// The number that unbinds a vector.
const NO_EVENTFD: Fd = Fd(-1);

/// An eventfd of this process.
struct Own(Arc<EventFd>);

impl Eventfd for Own {
    fn signal(&self) {
        // EAGAIN: the counter is at its maximum.
        let _ = self.0.write(1);
    }

    fn take(&self) -> u64 {
        self.0.read().unwrap_or(0)
    }
}

/// Opens a container and a group, and sets a type1v2 IOMMU.
pub(super) fn open_type1(system: &System, group: u32) -> io::Result<(Fd, Fd)> {
    let (container, group) = (system.open_container(), system.open_group(group)?);
    system.set_container(group, container)?;
    system.set_iommu(container, sys::VFIO_TYPE1v2_IOMMU.into())?;
    Ok((container, group))
}

/// The size of the buffer of an info ioctl, with room for capabilities.
const INFO_SIZE: u32 = 4096;

/// The reply of an info ioctl whose struct begins with `argsz`, flags and an index.
pub(super) fn info_reply(
    index: u32,
    call: impl FnOnce(&mut [u8]) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    let words = [INFO_SIZE, 0, index];
    let mut reply: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    reply.resize(INFO_SIZE as usize, 0);
    call(&mut reply)?;
    Ok(reply)
}
