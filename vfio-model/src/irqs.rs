//! `VFIO_DEVICE_SET_IRQS`: what the core checks, and what vfio-pci makes of it
//! (drivers/vfio/pci/vfio_pci_intrs.c).

use std::collections::BTreeSet;
use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::events::Event;
use crate::files::Files;
use crate::intx::Intx;
use crate::vectors::Vectors;
use crate::{Fd, Kernel, PciFunction, errno};

/// `struct vfio_irq_set`, for [`System::set_irqs`](super::System::set_irqs).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IrqSet {
    /// The size that the caller gives the struct and its data.
    pub argsz: u32,
    /// `VFIO_IRQ_SET_DATA_*` and `VFIO_IRQ_SET_ACTION_*`
    pub flags: u32,
    /// `VFIO_PCI_*_IRQ_INDEX`
    pub index: u32,
    /// The first vector.
    pub start: u32,
    /// How many vectors.
    pub count: u32,
    /// What is behind the struct. What is asked for and not there is zero.
    pub data: IrqData,
}

impl IrqSet {
    /// The size of the struct without data.
    pub const HEADER: u32 = 20;

    /// One with the `argsz` that its data asks for.
    pub fn new(flags: u32, index: u32, start: u32, count: u32, data: IrqData) -> Self {
        let argsz = data.size().saturating_add(Self::HEADER);
        Self { argsz, flags, index, start, count, data }
    }
}

/// The data of an [`IrqSet`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IrqData {
    /// None.
    None,
    /// A byte a vector.
    Bools(Vec<u8>),
    /// An eventfd a vector; negative numbers stand for none.
    Eventfds(Vec<Fd>),
}

impl IrqData {
    /// In bytes.
    pub fn size(&self) -> u32 {
        let size = match self {
            Self::None => 0,
            Self::Bools(bools) => bools.len(),
            Self::Eventfds(fds) => fds.len().saturating_mul(4),
        };
        u32::try_from(size).unwrap_or(u32::MAX)
    }

    /// As the kernel reads it.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Bools(bools) => bools.clone(),
            Self::Eventfds(fds) => fds.iter().flat_map(|fd| fd.0.to_ne_bytes()).collect(),
        }
    }
}

pub(crate) const DATA: u32 = sys::VFIO_IRQ_SET_DATA_TYPE_MASK;
const ACTION: u32 = sys::VFIO_IRQ_SET_ACTION_TYPE_MASK;
pub(crate) const NONE: u32 = sys::VFIO_IRQ_SET_DATA_NONE;
pub(crate) const BOOL: u32 = sys::VFIO_IRQ_SET_DATA_BOOL;
pub(crate) const EVENTFD: u32 = sys::VFIO_IRQ_SET_DATA_EVENTFD;
const MASK: u32 = sys::VFIO_IRQ_SET_ACTION_MASK;
const UNMASK: u32 = sys::VFIO_IRQ_SET_ACTION_UNMASK;
const TRIGGER: u32 = sys::VFIO_IRQ_SET_ACTION_TRIGGER;

/// What every bus driver of VFIO has checked: bounds, flags, and room for the data, in this order.
/// One kind of data must be named; the action is left to the driver.
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

/// What is on: one kind at a time.
#[derive(Debug, Default)]
pub(crate) enum On {
    #[default]
    Nothing,
    Intx(Intx),
    Vectors(Vectors),
}

/// The interrupts of an open function.
#[derive(Debug, Default)]
pub(crate) struct Irqs {
    pub on: On,
    pub error: Option<Event>,
    pub request: Option<Event>,
}

/// The interrupts of a device, as VFIO has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// The index that is on, of INTx, MSI and MSI-X.
    pub active: Option<u32>,
    /// Its vectors that signal an eventfd.
    pub bound: BTreeSet<u32>,
    /// Its vectors that the kernel has allocated in the host.
    pub allocated: BTreeSet<u32>,
    /// Whether an eventfd unmasks INTx.
    pub unmasks: bool,
    /// The indexes among those of errors and requests that signal an eventfd.
    pub events: BTreeSet<u32>,
}

/// A call that has passed [`validate`].
pub(crate) struct Call<'a> {
    pub set: &'a IrqSet,
    pub kernel: Kernel,
    files: &'a Files,
    data: Vec<u8>,
}

impl Call<'_> {
    pub fn has(&self, data: u32) -> bool {
        self.set.flags & DATA == data
    }

    pub fn bool(&self, at: usize) -> bool {
        self.data.get(at).is_some_and(|byte| *byte != 0)
    }

    pub fn fd(&self, at: usize) -> i32 {
        let bytes = self.data.get(at.saturating_mul(4)..).and_then(|b| b.first_chunk());
        i32::from_ne_bytes(bytes.copied().unwrap_or_default())
    }

    /// The eventfd at a place of the data: none where the number is negative.
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

    /// One vector from the first on, as INTx has it.
    pub fn is_the_pin(&self) -> bool {
        self.set.start == 0 && self.set.count == 1
    }
}

impl Irqs {
    /// The call, after [`validate`].
    pub fn set(&mut self, set: &IrqSet, kernel: Kernel, files: &Files) -> io::Result<()> {
        let mut data = set.data.bytes();
        data.resize(data.len().max(set.count.saturating_mul(4) as usize), 0);
        let call = Call { set, kernel, files, data };
        match (set.index, set.flags & ACTION) {
            (sys::VFIO_PCI_INTX_IRQ_INDEX, MASK) => self.mask_intx(&call),
            (sys::VFIO_PCI_INTX_IRQ_INDEX, UNMASK) => self.unmask_intx(&call),
            (sys::VFIO_PCI_INTX_IRQ_INDEX, TRIGGER) => self.trigger_intx(&call),
            (sys::VFIO_PCI_MSI_IRQ_INDEX | sys::VFIO_PCI_MSIX_IRQ_INDEX, TRIGGER) => {
                self.trigger_msi(&call)
            }
            (sys::VFIO_PCI_ERR_IRQ_INDEX, TRIGGER) => single(&mut self.error, &call),
            (sys::VFIO_PCI_REQ_IRQ_INDEX, TRIGGER) => single(&mut self.request, &call),
            _ => Err(errno(libc::ENOTTY)),
        }
    }

    /// What there is, for a test to look at.
    pub fn interrupts(&self) -> Interrupts {
        let error = self.error.as_ref().map(|_| sys::VFIO_PCI_ERR_IRQ_INDEX);
        let request = self.request.as_ref().map(|_| sys::VFIO_PCI_REQ_IRQ_INDEX);
        let events = error.into_iter().chain(request).collect();
        match &self.on {
            On::Nothing => Interrupts { events, ..Interrupts::default() },
            On::Intx(intx) => Interrupts { events, ..intx.interrupts() },
            On::Vectors(vectors) => Interrupts { events, ..vectors.interrupts() },
        }
    }
}

/// The index of errors, or that of requests: one interrupt each
/// (`vfio_pci_set_ctx_trigger_single`).
fn single(bound: &mut Option<Event>, call: &Call<'_>) -> io::Result<()> {
    let count = call.set.count;
    if call.set.start != 0 || count > 1 {
        return Err(errno(libc::EINVAL));
    }
    match (call.set.flags & DATA, count, &bound) {
        (NONE, 0, Some(_)) => *bound = None,
        (NONE, _, Some(event)) => event.signal(),
        (BOOL, 1, event) if call.bool(0) => event.iter().for_each(|event| event.signal()),
        (BOOL, 1, _) => {}
        (EVENTFD, 1, _) => match call.fd(0) {
            -1 => *bound = None,
            // Any other number below zero changes nothing.
            ..0 => {}
            _ => *bound = call.eventfd(0)?,
        },
        _ => return Err(errno(libc::EINVAL)),
    }
    Ok(())
}

/// `VFIO_DEVICE_GET_IRQ_INFO`'s flags. A function without MSI-X cannot add vectors to it.
pub(crate) fn flags(index: u32, kernel: Kernel, function: &PciFunction) -> u32 {
    let shape = match index {
        sys::VFIO_PCI_INTX_IRQ_INDEX => sys::VFIO_IRQ_INFO_MASKABLE | sys::VFIO_IRQ_INFO_AUTOMASKED,
        sys::VFIO_PCI_MSIX_IRQ_INDEX if kernel.grows_msix() && function.msix > 0 => 0,
        _ => sys::VFIO_IRQ_INFO_NORESIZE,
    };
    sys::VFIO_IRQ_INFO_EVENTFD | shape
}
