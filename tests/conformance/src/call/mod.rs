//! Calls as data, and a player that makes them.

mod iommufd;

use std::io;

use vfio_model::{Fd, IrqData, IrqSet, Irqfd, MapDma, UnmapDma};

use crate::Core;

pub use iommufd::IommufdCall;

/// A file of a sequence, or an fd that is not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The file at this place in the order of opens.
    File(usize),
    /// -1
    Negative,
    /// A number that no file has.
    Unused,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Core::open_container`]
    OpenContainer,
    /// [`Core::open_group`]
    OpenGroup(u32),
    /// [`Core::open_eventfd`]
    OpenEventfd,
    /// [`Core::open_kvm`]
    OpenKvm,
    /// [`Core::open_memory`]
    OpenMemory(u64),
    /// [`Core::open_device`]
    OpenDevice(Slot, String),
    /// [`Core::close`]
    Close(Slot),
    /// [`Core::api_version`]
    ApiVersion(Slot),
    /// [`Core::check_extension`]
    CheckExtension(Slot, u64),
    /// [`Core::set_iommu`]
    SetIommu(Slot, u64),
    /// [`Core::map_dma`]
    Map(Slot, MapDma),
    /// [`Core::unmap_dma`]
    Unmap(Slot, UnmapDma),
    /// [`Core::iommu_info`], with `argsz`.
    IommuInfo(Slot, u32),
    /// [`Core::group_status`], with `argsz`.
    GroupStatus(Slot, u32),
    /// [`Core::set_container`]
    SetContainer(Slot, Slot),
    /// [`Core::unset_container`]
    UnsetContainer(Slot),
    /// [`Core::link`]
    Link(Slot, Slot),
    /// [`Core::unlink`]
    Unlink(Slot, Slot),
    /// [`Core::irqfd`], with the eventfd, the interrupt, the flags and the eventfd to resample.
    Irqfd(Slot, Slot, u32, u32, Slot),
    /// [`Core::device_info`], with `argsz`.
    DeviceInfo(Slot, u32),
    /// [`Core::region_info`], with `argsz` and the index.
    RegionInfo(Slot, u32, u32),
    /// [`Core::irq_info`], with `argsz` and the index.
    IrqInfo(Slot, u32, u32),
    /// [`Core::set_irqs`], where eventfds are slots.
    SetIrqs(Slot, Box<IrqCall>),
    /// [`Core::reset`]
    Reset(Slot),
    /// [`Iommufd::open_iommufd`](crate::contract::Iommufd::open_iommufd)
    OpenIommufd,
    /// [`Iommufd::open_cdev`](crate::contract::Iommufd::open_cdev)
    OpenCdev(String),
    /// A call of iommufd or of a character device.
    Iommufd(Slot, Box<IommufdCall>),
}

/// An [`IrqSet`] with slots for eventfds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IrqCall {
    /// The set without its eventfds.
    pub set: IrqSet,
    /// The eventfds, for data of that kind.
    pub eventfds: Option<Vec<Slot>>,
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success without a value.
    Done,
    /// A file. Its number is not compared.
    Opened,
    /// A number.
    Number(u64),
    /// The content of the buffer.
    Bytes(Vec<u8>),
    /// A failure.
    Errno(i32),
    /// A failure, and the content of the buffer.
    Refused(i32, Vec<u8>),
}

/// The argument of an info ioctl, filled so that bytes which the kernel does not write are visible.
fn argument(argsz: u32, index: u32) -> Vec<u8> {
    let header: Vec<u8> = [argsz, 0, index].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut bytes = header;
    bytes.resize(bytes.len().max(argsz as usize).max(64), 0xa5);
    bytes
}

/// Makes calls, and keeps the files.
pub struct Player<'a, C> {
    core: &'a mut C,
    files: Vec<Fd>,
    open: Vec<bool>,
}

impl<'a, C: Core> Player<'a, C> {
    /// A player without open files.
    pub fn new(core: &'a mut C) -> Self {
        Self { core, files: Vec::new(), open: Vec::new() }
    }

    fn fd(&self, slot: Slot) -> Fd {
        match slot {
            Slot::File(number) => self.files.get(number).copied().unwrap_or(Fd(-1)),
            Slot::Negative => Fd(-1),
            Slot::Unused => Fd(1_000_000),
        }
    }

    /// Makes a call.
    pub fn perform(&mut self, call: &Call) -> Outcome {
        self.attempt(call).unwrap_or_else(|error| Outcome::Errno(error.raw_os_error().unwrap_or(0)))
    }

    fn attempt(&mut self, call: &Call) -> io::Result<Outcome> {
        match call {
            Call::OpenContainer => self.core.open_container().map(|fd| self.opened(fd)),
            Call::OpenGroup(group) => self.core.open_group(*group).map(|fd| self.opened(fd)),
            Call::OpenEventfd => self.core.open_eventfd().map(|fd| self.opened(fd)),
            Call::OpenKvm => self.core.open_kvm().map(|fd| self.opened(fd)),
            Call::OpenMemory(size) => self.core.open_memory(*size).map(|fd| self.opened(fd)),
            Call::OpenDevice(group, name) => {
                let group = self.fd(*group);
                self.core.open_device(group, name).map(|fd| self.opened(fd))
            }
            Call::OpenIommufd => self.core.open_iommufd().map(|fd| self.opened(fd)),
            Call::OpenCdev(name) => self.core.open_cdev(name).map(|fd| self.opened(fd)),
            Call::Iommufd(slot, call) => self.iommufd(*slot, call),
            Call::Close(slot) => self.close(*slot).map(|()| Outcome::Done),
            Call::ApiVersion(slot) => self.core.api_version(self.fd(*slot)).map(number),
            Call::CheckExtension(slot, extension) => {
                self.core.check_extension(self.fd(*slot), *extension).map(number)
            }
            Call::GroupStatus(slot, argsz) => {
                self.core.group_status(self.fd(*slot), *argsz).map(number)
            }
            Call::Unmap(slot, unmap) => {
                self.core.unmap_dma(self.fd(*slot), unmap).map(Outcome::Number)
            }
            Call::IommuInfo(..)
            | Call::DeviceInfo(..)
            | Call::RegionInfo(..)
            | Call::IrqInfo(..) => self.ask(call),
            _ => self.act(call).map(|()| Outcome::Done),
        }
    }

    /// The calls that return no value.
    fn act(&mut self, call: &Call) -> io::Result<()> {
        match call {
            Call::SetIommu(slot, kind) => self.core.set_iommu(self.fd(*slot), *kind),
            Call::Map(slot, map) => self.core.map_dma(self.fd(*slot), map),
            Call::SetContainer(group, container) => {
                self.core.set_container(self.fd(*group), self.fd(*container))
            }
            Call::UnsetContainer(slot) => self.core.unset_container(self.fd(*slot)),
            Call::Link(kvm, file) => self.core.link(self.fd(*kvm), self.fd(*file)),
            Call::Unlink(kvm, file) => self.core.unlink(self.fd(*kvm), self.fd(*file)),
            Call::Irqfd(kvm, eventfd, gsi, flags, resample) => {
                let (eventfd, resample) = (self.fd(*eventfd), self.fd(*resample));
                let call = Irqfd { eventfd, gsi: *gsi, flags: *flags, resample };
                self.core.irqfd(self.fd(*kvm), &call)
            }
            Call::SetIrqs(slot, call) => {
                let mut set = call.set.clone();
                if let Some(eventfds) = &call.eventfds {
                    set.data =
                        IrqData::Eventfds(eventfds.iter().map(|slot| self.fd(*slot)).collect());
                }
                self.core.set_irqs(self.fd(*slot), &set)
            }
            Call::Reset(slot) => self.core.reset(self.fd(*slot)),
            _ => Ok(()),
        }
    }

    /// The calls that fill a buffer.
    fn ask(&mut self, call: &Call) -> io::Result<Outcome> {
        let mut buffer;
        match call {
            Call::IommuInfo(slot, argsz) => {
                buffer = argument(*argsz, 0);
                self.core.iommu_info(self.fd(*slot), &mut buffer)?;
            }
            Call::DeviceInfo(slot, argsz) => {
                buffer = argument(*argsz, 0);
                self.core.device_info(self.fd(*slot), &mut buffer)?;
            }
            Call::RegionInfo(slot, argsz, index) => {
                buffer = argument(*argsz, *index);
                self.core.region_info(self.fd(*slot), &mut buffer)?;
            }
            Call::IrqInfo(slot, argsz, index) => {
                buffer = argument(*argsz, *index);
                self.core.irq_info(self.fd(*slot), &mut buffer)?;
            }
            _ => buffer = Vec::new(),
        }
        Ok(Outcome::Bytes(buffer))
    }

    fn opened(&mut self, fd: Fd) -> Outcome {
        self.files.push(fd);
        self.open.push(true);
        Outcome::Opened
    }

    fn close(&mut self, slot: Slot) -> io::Result<()> {
        let closed = self.core.close(self.fd(slot));
        if let Slot::File(number) = slot
            && let Some(open) = self.open.get_mut(number)
        {
            *open = false;
        }
        closed
    }

    /// Closes all open files, the last first.
    pub fn close_all(&mut self) {
        for number in (0..self.files.len()).rev() {
            if self.open.get(number) == Some(&true) {
                // A file that cannot be closed is not open.
                let _ = self.close(Slot::File(number));
            }
        }
    }
}

fn number(value: u32) -> Outcome {
    Outcome::Number(value.into())
}
