//! `VFIO_DEVICE_SET_IRQS`: what the core checks, and what vfio-pci makes of it
//! (drivers/vfio/pci/vfio_pci_intrs.c).

use std::collections::BTreeMap;
use std::io;

use vfio_bindings::bindings::vfio as sys;

use super::files::{EventId, Events, Files};
use super::{Fd, Kernel, PciFunction, errno};

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

const DATA: u32 = sys::VFIO_IRQ_SET_DATA_TYPE_MASK;
const ACTION: u32 = sys::VFIO_IRQ_SET_ACTION_TYPE_MASK;
const NONE: u32 = sys::VFIO_IRQ_SET_DATA_NONE;
const BOOL: u32 = sys::VFIO_IRQ_SET_DATA_BOOL;
const EVENTFD: u32 = sys::VFIO_IRQ_SET_DATA_EVENTFD;
const MASK: u32 = sys::VFIO_IRQ_SET_ACTION_MASK;
const UNMASK: u32 = sys::VFIO_IRQ_SET_ACTION_UNMASK;
const TRIGGER: u32 = sys::VFIO_IRQ_SET_ACTION_TRIGGER;

/// What every bus driver of VFIO has checked: bounds, flags, and room for the data, in this order. One kind of data
/// must be named; the action is left to the driver.
pub(super) fn validate(set: &IrqSet, vectors: u32, indexes: u32) -> io::Result<()> {
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
enum On {
    #[default]
    Nothing,
    Intx {
        trigger: Option<EventId>,
        unmask: Option<EventId>,
    },
    Vectors {
        index: u32,
        /// How many were asked for when it was turned on.
        room: u32,
        triggers: BTreeMap<u32, EventId>,
    },
}

/// The interrupts of an open function.
#[derive(Debug, Default)]
pub(super) struct Irqs {
    on: On,
    error: Option<EventId>,
    request: Option<EventId>,
}

/// A call that has passed [`validate`].
struct Call<'a> {
    set: &'a IrqSet,
    kernel: Kernel,
    files: &'a Files,
    events: &'a mut Events,
    data: Vec<u8>,
}

impl Call<'_> {
    fn has(&self, data: u32) -> bool {
        self.set.flags & DATA == data
    }

    fn bool(&self, at: usize) -> bool {
        self.data.get(at).is_some_and(|byte| *byte != 0)
    }

    fn fd(&self, at: usize) -> i32 {
        let bytes = self.data.get(at.saturating_mul(4)..).and_then(|b| b.first_chunk());
        i32::from_ne_bytes(bytes.copied().unwrap_or_default())
    }

    /// The eventfd at a place of the data: none where the number is negative.
    fn eventfd(&self, at: usize) -> io::Result<Option<EventId>> {
        match self.fd(at) {
            ..0 => Ok(None),
            fd => self.files.eventfd(Fd(fd)).map(Some),
        }
    }

    /// One vector from the first on, as INTx has it.
    fn is_the_pin(&self) -> bool {
        self.set.start == 0 && self.set.count == 1
    }
}

impl Irqs {
    /// The eventfd of the request interrupt.
    pub fn request(&self) -> Option<EventId> {
        self.request
    }

    /// The call, after [`validate`].
    pub fn set(
        &mut self,
        set: &IrqSet,
        kernel: Kernel,
        files: &Files,
        events: &mut Events,
    ) -> io::Result<()> {
        let mut data = set.data.bytes();
        data.resize(data.len().max(set.count.saturating_mul(4) as usize), 0);
        let call = Call { set, kernel, files, events, data };
        match (set.index, set.flags & ACTION) {
            (sys::VFIO_PCI_INTX_IRQ_INDEX, MASK) => self.mask(&call),
            (sys::VFIO_PCI_INTX_IRQ_INDEX, UNMASK) => self.unmask(&call),
            (sys::VFIO_PCI_INTX_IRQ_INDEX, TRIGGER) => self.trigger_intx(call),
            (sys::VFIO_PCI_MSI_IRQ_INDEX | sys::VFIO_PCI_MSIX_IRQ_INDEX, TRIGGER) => {
                self.trigger_msi(call)
            }
            (sys::VFIO_PCI_ERR_IRQ_INDEX, TRIGGER) => single(&mut self.error, call),
            (sys::VFIO_PCI_REQ_IRQ_INDEX, TRIGGER) => single(&mut self.request, call),
            _ => Err(errno(libc::ENOTTY)),
        }
    }

    fn mask(&mut self, call: &Call<'_>) -> io::Result<()> {
        match &self.on {
            On::Intx { .. } if !call.is_the_pin() => Err(errno(libc::EINVAL)),
            On::Intx { .. } if call.has(EVENTFD) => Err(errno(libc::ENOTTY)),
            On::Intx { .. } => Ok(()),
            _ => Err(errno(libc::EINVAL)),
        }
    }

    fn unmask(&mut self, call: &Call<'_>) -> io::Result<()> {
        let On::Intx { unmask, .. } = &mut self.on else {
            return Err(errno(libc::EINVAL));
        };
        if !call.is_the_pin() {
            return Err(errno(libc::EINVAL));
        }
        if !call.has(EVENTFD) {
            return Ok(());
        }
        match (call.eventfd(0)?, &unmask) {
            (Some(_), Some(_)) => Err(errno(libc::EBUSY)),
            (new, _) => {
                *unmask = new;
                Ok(())
            }
        }
    }

    fn trigger_intx(&mut self, call: Call<'_>) -> io::Result<()> {
        let on = match &mut self.on {
            On::Nothing => None,
            On::Intx { trigger, .. } => Some(trigger),
            On::Vectors { .. } => return Err(errno(libc::EINVAL)),
        };
        if on.is_some() && call.set.count == 0 && call.has(NONE) {
            self.on = On::Nothing;
            return Ok(());
        }
        if !call.is_the_pin() {
            return Err(errno(libc::EINVAL));
        }
        match on {
            Some(trigger) if call.has(EVENTFD) => *trigger = call.eventfd(0)?,
            None if call.has(EVENTFD) => {
                let trigger = call.eventfd(0)?;
                self.on = On::Intx { trigger, unmask: None };
            }
            Some(trigger) if call.has(NONE) || call.bool(0) => {
                let trigger = *trigger;
                trigger.into_iter().for_each(|event| call.events.signal(event));
            }
            Some(_) => {}
            None => return Err(errno(libc::EINVAL)),
        }
        Ok(())
    }

    fn trigger_msi(&mut self, call: Call<'_>) -> io::Result<()> {
        let set = call.set;
        let is_on = match &self.on {
            On::Nothing => false,
            On::Vectors { index, .. } if *index == set.index => true,
            _ => return Err(errno(libc::EINVAL)),
        };
        if is_on && set.count == 0 && call.has(NONE) {
            self.on = On::Nothing;
            return Ok(());
        }
        if !call.has(EVENTFD) {
            return self.loop_back(call);
        }
        if is_on {
            return self.set_block(&call);
        }
        let room = set.start.saturating_add(set.count);
        if room == 0 {
            // The driver core has no room for none.
            return Err(errno(libc::ERANGE));
        }
        self.on = On::Vectors { index: set.index, room, triggers: BTreeMap::new() };
        self.set_block(&call).inspect_err(|_| self.on = On::Nothing)
    }

    /// Binds vectors, or unbinds them; where one fails, those that were bound by this call are unbound.
    fn set_block(&mut self, call: &Call<'_>) -> io::Result<()> {
        let On::Vectors { index, room, triggers } = &mut self.on else {
            return Err(errno(libc::EINVAL));
        };
        let (start, end) = (call.set.start, call.set.start.saturating_add(call.set.count));
        // A kernel that adds vectors one by one has no bounds but the table's, and notices a vector that it
        // cannot add when it is to be bound.
        if !call.kernel.grows_msix() && (start >= *room || end > *room) {
            return Err(errno(libc::EINVAL));
        }
        let grows = call.kernel.grows_msix() && *index == sys::VFIO_PCI_MSIX_IRQ_INDEX;
        for (at, vector) in (start..end).enumerate() {
            triggers.remove(&vector);
            let bound = match call.fd(at) {
                ..0 => Ok(None),
                _ if vector >= *room && !grows => Err(errno(libc::EINVAL)),
                _ => call.eventfd(at),
            };
            match bound {
                Ok(Some(event)) => drop(triggers.insert(vector, event)),
                Ok(None) => {}
                Err(error) => {
                    triggers.retain(|bound, _| *bound < start || *bound > vector);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Signals eventfds as if their vectors had fired.
    fn loop_back(&mut self, call: Call<'_>) -> io::Result<()> {
        let On::Vectors { room, triggers, .. } = &self.on else {
            return Err(errno(libc::EINVAL));
        };
        let (start, end) = (call.set.start, call.set.start.saturating_add(call.set.count));
        if !call.kernel.grows_msix() && end > *room {
            return Err(errno(libc::EINVAL));
        }
        for (at, vector) in (start..end).enumerate() {
            let fires = call.has(NONE) || call.bool(at);
            if let Some(event) = triggers.get(&vector).filter(|_| fires) {
                call.events.signal(*event);
            }
        }
        Ok(())
    }
}

/// An index of one interrupt that tells of the device: of errors, of its being wanted back.
fn single(bound: &mut Option<EventId>, call: Call<'_>) -> io::Result<()> {
    let count = call.set.count;
    if call.set.start != 0 || count > 1 {
        return Err(errno(libc::EINVAL));
    }
    match (call.set.flags & DATA, count, *bound) {
        (NONE, 0, Some(_)) => *bound = None,
        (NONE, _, Some(event)) => call.events.signal(event),
        (BOOL, 1, event) => {
            event.filter(|_| call.bool(0)).into_iter().for_each(|event| call.events.signal(event))
        }
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
pub(super) fn flags(index: u32, kernel: Kernel, function: &PciFunction) -> u32 {
    let shape = match index {
        sys::VFIO_PCI_INTX_IRQ_INDEX => sys::VFIO_IRQ_INFO_MASKABLE | sys::VFIO_IRQ_INFO_AUTOMASKED,
        sys::VFIO_PCI_MSIX_IRQ_INDEX if kernel.grows_msix() && function.msix > 0 => 0,
        _ => sys::VFIO_IRQ_INFO_NORESIZE,
    };
    sys::VFIO_IRQ_INFO_EVENTFD | shape
}
