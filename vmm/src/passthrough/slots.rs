//! The slots of a guest whose devices come and go: the registers that its ACPI methods read, and
//! their interrupt.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::{EjectSink, HotPlug};
use nix::sys::eventfd;
use vmm_sys_util::eventfd::EventFd;

/// Registers that report ejected slots to an [`Ejections`].
pub(crate) type Registers = HotPlug<Ejected>;

/// The time after which a guest is reminded of a change that it has not read.
const UNREAD: Duration = Duration::from_millis(200);
/// The time after which a guest is asked again for a device. A driver may need some of it.
const UNANSWERED: Duration = Duration::from_secs(3);

/// The slots, as the VMM changes them.
pub(crate) struct Slots {
    registers: Arc<Registers>,
    interrupt: EventFd,
    /// Wakes the thread that reminds the guest.
    signal: Arc<eventfd::EventFd>,
    /// The slots that the host asked for.
    asked: Mutex<BTreeSet<u8>>,
}

impl Slots {
    /// The slots of `registers`, whose changes raise `interrupt` and `signal`.
    pub(crate) fn new(
        registers: Arc<Registers>,
        interrupt: EventFd,
        signal: Arc<eventfd::EventFd>,
    ) -> Self {
        Self { registers, interrupt, signal, asked: Mutex::default() }
    }

    /// The registers, for the port bus.
    pub(crate) fn registers(&self) -> Arc<Registers> {
        Arc::clone(&self.registers)
    }

    /// Reports new devices to the guest.
    pub(crate) fn arrive(&self, slots: impl IntoIterator<Item = u8>) {
        slots.into_iter().for_each(|slot| self.registers.arrive(slot));
        self.raise();
    }

    /// Asks the guest for the devices in a slot.
    pub(crate) fn ask(&self, slot: u8) {
        self.asked().insert(slot);
        self.registers.want(slot);
        self.raise();
    }

    /// Forgets slots whose devices the host has.
    pub(crate) fn forget(&self, slots: &[u8]) {
        self.asked().retain(|asked| !slots.contains(asked));
    }

    /// The slots that the host asked for and does not have yet.
    pub(crate) fn still_asked(&self) -> Vec<u8> {
        self.asked().iter().copied().collect()
    }

    /// When to call [`remind`](Self::remind), if the guest does not act before; `None` if the guest
    /// has nothing to do.
    pub(crate) fn reminder(&self) -> Option<Duration> {
        let is_asked = !self.asked().is_empty();
        let unread = self.registers.is_unread().then_some(UNREAD);
        unread.or(is_asked.then_some(UNANSWERED))
    }

    /// Raises the interrupt again if the guest has not read a change: a guest that boots loses an
    /// interrupt that comes before it has a handler, because its line is edge-triggered. If it has
    /// read all, it is asked again for the slots that it has not ejected: Linux reads the registers
    /// as soon as it runs ACPI, and notifies nobody before its driver of hot-plug has started.
    pub(crate) fn remind(&self) {
        if !self.registers.is_unread() {
            let asked = self.asked();
            let unanswered = asked.iter().filter(|slot| self.registers.has(**slot));
            unanswered.for_each(|slot| self.registers.want(*slot));
        }
        if self.registers.is_unread() {
            let _ = self.interrupt.write(1);
        }
    }

    fn asked(&self) -> MutexGuard<'_, BTreeSet<u8>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest has not ejected the slot yet.
    pub(crate) fn is_taken(&self, slot: u8) -> bool {
        self.registers.has(slot)
    }

    fn raise(&self) {
        // The counter overflows only if the guest never takes the interrupt; it is then pending.
        let _ = self.interrupt.write(1);
        let _ = self.signal.write(1);
    }
}

/// Slots that the guest ejected, and whose devices the VMM has not given back yet.
pub(crate) struct Ejections {
    slots: Mutex<Vec<u8>>,
    /// Wakes the thread that gives them back.
    signal: Arc<eventfd::EventFd>,
}

impl Ejections {
    /// No slot. `signal` is raised for each.
    pub(crate) fn new(signal: Arc<eventfd::EventFd>) -> Self {
        Self { slots: Mutex::default(), signal }
    }

    /// Takes all slots.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.lock())
    }

    /// Whether a slot waits.
    pub(crate) fn has(&self, slot: u8) -> bool {
        self.lock().contains(&slot)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds slots to an [`Ejections`].
pub(crate) struct Ejected(pub(crate) Arc<Ejections>);

impl EjectSink for Ejected {
    fn ejected(&self, slot: u8) {
        self.0.lock().push(slot);
        let _ = self.0.signal.write(1);
    }
}

#[cfg(test)]
mod tests {
    use devices::EjectSink as _;
    use nix::sys::eventfd::EfdFlags;
    use vm_device::DevicePio as _;
    use vm_device::bus::PioAddress;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn ejections() -> Arc<Ejections> {
        let signal = eventfd::EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        Arc::new(Ejections::new(Arc::new(signal)))
    }

    #[test]
    fn each_change_is_in_the_registers_before_it_interrupts_the_guest() {
        let ejections = ejections();
        let signal = Arc::clone(&ejections.signal);
        let registers = Arc::new(Registers::new([1], Ejected(ejections)));
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let raised = interrupt.try_clone().unwrap();
        let slots = Slots::new(registers, interrupt, signal);
        let read = |port: u16| {
            let mut data = [0; 4];
            slots.registers().pio_read(PioAddress(port), 0, &mut data);
            u32::from_le_bytes(data)
        };
        slots.arrive([2, 3]);
        assert_eq!((raised.read().unwrap(), read(HotPlug::ARRIVED)), (1, 0b1100));
        slots.ask(1);
        assert_eq!((raised.read().unwrap(), read(HotPlug::WANTED)), (1, 0b10));
        assert_eq!([1, 2, 4].map(|slot| slots.is_taken(slot)), [true, true, false]);
        (0..3).for_each(|_| slots.raise());
        assert_eq!(raised.read().unwrap(), 3, "the kernel makes one interrupt of them");
    }

    #[test]
    fn a_guest_that_read_a_request_and_did_not_act_is_asked_again() {
        let ejections = ejections();
        let signal = Arc::clone(&ejections.signal);
        let registers = Arc::new(Registers::new([1], Ejected(ejections)));
        let slots = Slots::new(registers, EventFd::new(EFD_NONBLOCK).unwrap(), signal);
        let wanted = || {
            let mut data = [0; 4];
            slots.registers().pio_read(PioAddress(HotPlug::WANTED), 0, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(slots.reminder(), None);
        slots.ask(1);
        assert_eq!((slots.reminder(), wanted()), (Some(UNREAD), 0b10));
        assert_eq!((slots.reminder(), wanted()), (Some(UNANSWERED), 0));
        slots.remind();
        assert_eq!((slots.interrupt.read().unwrap(), wanted()), (2, 0b10));
        let eject = 0b10_u32.to_le_bytes();
        slots.registers().pio_write(PioAddress(HotPlug::EJECT), 0, &eject);
        slots.remind();
        assert_eq!(wanted(), 0, "the guest has ejected it");
        slots.forget(&[1]);
        assert_eq!(slots.reminder(), None);
    }

    #[test]
    fn an_ejected_slot_wakes_the_thread_that_takes_it_once() {
        let ejections = ejections();
        assert!(ejections.signal.read().is_err(), "nothing was ejected");
        let sink = Ejected(Arc::clone(&ejections));
        [4, 5].into_iter().for_each(|slot| sink.ejected(slot));
        assert_eq!(ejections.signal.read(), Ok(2));
        assert_eq!(ejections.take(), [4, 5]);
        assert!(ejections.take().is_empty());
    }
}
