//! The interrupts of an open device: what vfio-pci does for `VFIO_DEVICE_SET_IRQS`
//! (drivers/vfio/pci/vfio_pci_intrs.c).

use std::collections::BTreeSet;
use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::describe::{Description, PciFunction};
use crate::errno::errno;
use crate::events::Event;
use crate::files::Files;
use crate::intx::Intx;
use crate::irq_set::{ACTION, BOOL, Call, DATA, EVENTFD, Host, IrqSet, NONE};
use crate::vectors::Vectors;

const MASK: u32 = sys::VFIO_IRQ_SET_ACTION_MASK;
const UNMASK: u32 = sys::VFIO_IRQ_SET_ACTION_UNMASK;
const TRIGGER: u32 = sys::VFIO_IRQ_SET_ACTION_TRIGGER;

/// The index that is enabled: INTx, MSI and MSI-X exclude each other.
#[derive(Debug, Default)]
pub(crate) enum Active {
    #[default]
    None,
    Intx(Intx),
    Vectors(Vectors),
}

/// The interrupts of an open device.
#[derive(Debug, Default)]
pub(crate) struct Irqs {
    pub active: Active,
    pub error: Option<Event>,
    pub request: Option<Event>,
}

/// The state of a device's interrupts in VFIO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// The index that is enabled, of INTx, MSI and MSI-X.
    pub active: Option<u32>,
    /// The vectors of that index that signal an eventfd.
    pub bound: BTreeSet<u32>,
    /// The vectors of that index that have an interrupt of the host.
    pub allocated: BTreeSet<u32>,
    /// Whether an eventfd unmasks INTx.
    pub unmasks: bool,
    /// The error and request indexes, where they signal an eventfd.
    pub events: BTreeSet<u32>,
}

impl Irqs {
    /// Carries out a call that has passed [`validate`](crate::irq_set::validate)
    /// (`vfio_pci_set_irqs_ioctl`).
    pub fn set(&mut self, set: &IrqSet, host: Host, files: &Files) -> io::Result<()> {
        let call = Call::new(set, host, files);
        match (set.index, set.flags & ACTION) {
            (sys::VFIO_PCI_INTX_IRQ_INDEX, MASK) => self.intx(&call)?.mask(&call),
            (sys::VFIO_PCI_INTX_IRQ_INDEX, UNMASK) => self.intx(&call)?.unmask(&call),
            (sys::VFIO_PCI_INTX_IRQ_INDEX, TRIGGER) => self.trigger_intx(&call),
            (sys::VFIO_PCI_MSI_IRQ_INDEX | sys::VFIO_PCI_MSIX_IRQ_INDEX, TRIGGER) => {
                self.trigger_msi(&call)
            }
            (sys::VFIO_PCI_ERR_IRQ_INDEX, TRIGGER) => set_single(&mut self.error, &call),
            (sys::VFIO_PCI_REQ_IRQ_INDEX, TRIGGER) => set_single(&mut self.request, &call),
            _ => Err(errno(libc::ENOTTY)),
        }
    }

    /// The pin, where it is enabled and the call names it.
    fn intx(&mut self, call: &Call<'_>) -> io::Result<&mut Intx> {
        match &mut self.active {
            Active::Intx(intx) if call.is_pin() => Ok(intx),
            _ => Err(errno(libc::EINVAL)),
        }
    }

    /// `vfio_pci_set_intx_trigger`.
    fn trigger_intx(&mut self, call: &Call<'_>) -> io::Result<()> {
        match &mut self.active {
            Active::Intx(_) if call.set.count == 0 && call.has(NONE) => self.active = Active::None,
            Active::Intx(intx) if call.is_pin() => return intx.trigger(call),
            Active::None if call.is_pin() && call.has(EVENTFD) => {
                self.active = Active::Intx(Intx::enable(call)?);
            }
            _ => return Err(errno(libc::EINVAL)),
        }
        Ok(())
    }

    /// `vfio_pci_set_msi_trigger`.
    fn trigger_msi(&mut self, call: &Call<'_>) -> io::Result<()> {
        let set = call.set;
        match &mut self.active {
            Active::Vectors(vectors) if vectors.index == set.index => {
                if set.count == 0 && call.has(NONE) {
                    self.active = Active::None;
                    return Ok(());
                }
                match call.has(EVENTFD) {
                    true => vectors.set_block(call),
                    false => vectors.loop_back(call),
                }
            }
            Active::None if call.has(EVENTFD) => {
                let mut vectors = Vectors::enable(call)?;
                vectors.set_block(call)?;
                self.active = Active::Vectors(vectors);
                Ok(())
            }
            _ => Err(errno(libc::EINVAL)),
        }
    }

    /// The number of interrupt vectors of the host that the device has.
    pub fn allocated(&self) -> u32 {
        match &self.active {
            Active::Vectors(vectors) => u32::try_from(vectors.allocated.len()).unwrap_or(u32::MAX),
            Active::None | Active::Intx(_) => 0,
        }
    }

    pub fn interrupts(&self) -> Interrupts {
        let error = self.error.as_ref().map(|_| sys::VFIO_PCI_ERR_IRQ_INDEX);
        let request = self.request.as_ref().map(|_| sys::VFIO_PCI_REQ_IRQ_INDEX);
        let events = error.into_iter().chain(request).collect();
        match &self.active {
            Active::None => Interrupts { events, ..Interrupts::default() },
            Active::Intx(intx) => Interrupts {
                active: Some(sys::VFIO_PCI_INTX_IRQ_INDEX),
                bound: intx.trigger.iter().map(|_| 0).collect(),
                allocated: [0].into(),
                unmasks: intx.unmask.is_some(),
                events,
            },
            Active::Vectors(vectors) => Interrupts {
                active: Some(vectors.index),
                bound: vectors.triggers.keys().copied().collect(),
                allocated: vectors.allocated.clone(),
                unmasks: false,
                events,
            },
        }
    }
}

/// The error index or the request index, which have one vector each
/// (`vfio_pci_set_ctx_trigger_single`).
fn set_single(bound: &mut Option<Event>, call: &Call<'_>) -> io::Result<()> {
    let count = call.set.count;
    if call.set.start != 0 || count > 1 {
        return Err(errno(libc::EINVAL));
    }
    match (call.set.flags & DATA, count, &bound) {
        (NONE, 0, Some(_)) => *bound = None,
        (NONE, _, Some(event)) => event.signal(),
        (BOOL, 1, event) if call.acts_on(0) => event.iter().for_each(|event| event.signal()),
        (BOOL, 1, _) => {}
        (EVENTFD, 1, _) => match call.fd(0) {
            -1 => *bound = None,
            // The kernel accepts other negative numbers and ignores them.
            ..0 => {}
            _ => *bound = call.eventfd(0)?,
        },
        _ => return Err(errno(libc::EINVAL)),
    }
    Ok(())
}

/// The flags of `VFIO_DEVICE_GET_IRQ_INFO`. MSI-X of 0 vectors cannot grow.
pub(crate) fn flags(index: u32, host: &Description, function: &PciFunction) -> u32 {
    let shape = match index {
        sys::VFIO_PCI_INTX_IRQ_INDEX => sys::VFIO_IRQ_INFO_MASKABLE | sys::VFIO_IRQ_INFO_AUTOMASKED,
        sys::VFIO_PCI_MSIX_IRQ_INDEX if host.can_grow_msix() && function.msix > 0 => 0,
        _ => sys::VFIO_IRQ_INFO_NORESIZE,
    };
    sys::VFIO_IRQ_INFO_EVENTFD | shape
}
