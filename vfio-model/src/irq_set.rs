//! `struct vfio_irq_set`: its bounds, its flags and its data.

use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::errno::errno;
use crate::events::Event;
use crate::files::{Fd, Files};
use crate::kernel::Kernel;

/// `struct vfio_irq_set`, for [`System::set_irqs`](crate::System::set_irqs).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IrqSet {
    /// The size of the struct and its data, as the caller states it.
    pub argsz: u32,
    /// `VFIO_IRQ_SET_DATA_*` and `VFIO_IRQ_SET_ACTION_*`.
    pub flags: u32,
    /// `VFIO_PCI_*_IRQ_INDEX`.
    pub index: u32,
    /// The first vector.
    pub start: u32,
    /// The number of vectors.
    pub count: u32,
    /// The bytes after the struct. Missing bytes are zero.
    pub data: IrqData,
}

impl IrqSet {
    /// The size of the struct without data.
    pub const HEADER: u32 = 20;

    /// Computes `argsz` from the data.
    pub fn new(flags: u32, index: u32, start: u32, count: u32, data: IrqData) -> Self {
        let size = u32::try_from(data.bytes().len()).unwrap_or(u32::MAX);
        let argsz = size.saturating_add(Self::HEADER);
        Self { argsz, flags, index, start, count, data }
    }
}

/// The data of an [`IrqSet`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IrqData {
    /// No data.
    None,
    /// One byte per vector.
    Bools(Vec<u8>),
    /// One eventfd per vector; a negative number means no eventfd.
    Eventfds(Vec<Fd>),
}

impl IrqData {
    /// The data as the kernel reads it.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Bools(bools) => bools.clone(),
            Self::Eventfds(fds) => fds.iter().flat_map(|fd| fd.0.to_ne_bytes()).collect(),
        }
    }
}

pub(crate) const DATA: u32 = sys::VFIO_IRQ_SET_DATA_TYPE_MASK;
pub(crate) const ACTION: u32 = sys::VFIO_IRQ_SET_ACTION_TYPE_MASK;
pub(crate) const NONE: u32 = sys::VFIO_IRQ_SET_DATA_NONE;
pub(crate) const BOOL: u32 = sys::VFIO_IRQ_SET_DATA_BOOL;
pub(crate) const EVENTFD: u32 = sys::VFIO_IRQ_SET_DATA_EVENTFD;

/// Checks bounds, flags and the size of the data, in the kernel's order
/// (`vfio_set_irqs_validate_and_prepare`). The flags must name one kind of data; each driver checks
/// the action itself.
pub(crate) fn validate(set: &IrqSet, vectors: u32, indexes: u32) -> io::Result<()> {
    let invalid = || errno(libc::EINVAL);
    let past = u32::MAX.wrapping_sub(set.start);
    let bad_header = set.argsz < IrqSet::HEADER || set.index >= indexes || set.count >= past;
    if bad_header || set.flags & !(DATA | ACTION) != 0 {
        return Err(invalid());
    }
    if set.start >= vectors || set.start.saturating_add(set.count) > vectors {
        return Err(invalid());
    }
    let each = match set.flags & DATA {
        NONE => 0,
        BOOL => 1,
        EVENTFD => 4,
        _ => return Err(invalid()),
    };
    match set.argsz.saturating_sub(IrqSet::HEADER) < set.count.saturating_mul(each) {
        true => Err(invalid()),
        false => Ok(()),
    }
}

/// The host of a device.
#[derive(Clone, Copy)]
pub(crate) struct Host {
    pub kernel: Kernel,
    /// [`Description::can_grow_msix`](crate::Description::can_grow_msix).
    pub grows_msix: bool,
    /// The interrupt vectors that the host has for the device: all that no other device has.
    pub available: u32,
    /// `Description::counts_vectors`.
    pub counts: bool,
}

/// A call that has passed [`validate`].
pub(crate) struct Call<'a> {
    pub set: &'a IrqSet,
    pub host: Host,
    files: &'a Files,
    data: Vec<u8>,
}

impl<'a> Call<'a> {
    pub fn new(set: &'a IrqSet, host: Host, files: &'a Files) -> Self {
        let mut data = set.data.bytes();
        data.resize(data.len().max(set.count.saturating_mul(4) as usize), 0);
        Self { set, host, files, data }
    }

    pub fn has(&self, data: u32) -> bool {
        self.set.flags & DATA == data
    }

    /// Whether the call acts on a vector: without data on all, with bools on those that are not 0.
    pub fn acts_on(&self, at: usize) -> bool {
        self.has(NONE) || self.data.get(at).is_some_and(|byte| *byte != 0)
    }

    pub fn fd(&self, at: usize) -> i32 {
        let bytes = self.data.get(at.saturating_mul(4)..).and_then(|bytes| bytes.first_chunk());
        i32::from_ne_bytes(bytes.copied().unwrap_or_default())
    }

    /// The eventfd of a vector; `None` for a negative number.
    pub fn eventfd(&self, at: usize) -> io::Result<Option<Event>> {
        match self.fd(at) {
            ..0 => Ok(None),
            fd => self.files.eventfd(Fd(fd)).map(Some),
        }
    }

    /// The vector after the last.
    pub fn end(&self) -> u32 {
        self.set.start.saturating_add(self.set.count)
    }

    /// Whether the call names the one vector that INTx has.
    pub fn is_pin(&self) -> bool {
        self.set.start == 0 && self.set.count == 1
    }
}
