//! The main thread's events: signals, stdin, the console's unfinished line, interrupts that have no
//! route yet, what the host tells of devices, and the end.

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use vfio_passthrough::kvm::SoftwareDelivery;
use vmm_sys_util::epoll::EventSet;

use super::control::Control;
use super::stats::Stats;
use super::stop::{Outcome, Stop};
use crate::error::Error;
use crate::guest::console::Pending;
use crate::host::epoll::{Subscriber, listen};
use crate::host::signals::{PAUSE, RESUME};

/// How long a prompt may wait to be seen: unnoticeable, and long enough for a line to be finished.
const PROMPT_MILLISECONDS: i32 = 10;
const FOREVER: i32 = -1;

/// What the main thread waits for.
pub(crate) struct MainLoop {
    manager: EventManager<Subscriber>,
    stop: Arc<Stop>,
    pending: Arc<Pending>,
    line: Arc<Mutex<LineBegun>>,
    stats: Arc<Stats>,
}

impl MainLoop {
    /// A loop that ends by `stop` or by a signal, and keeps `pending` from waiting too long.
    pub(crate) fn new(
        stop: &Arc<Stop>,
        (signals, control): (&Arc<SignalFd>, &Arc<Control>),
        pending: &Arc<Pending>,
        stats: &Arc<Stats>,
    ) -> Result<Self, Error> {
        let line =
            Arc::new(Mutex::new(LineBegun { pending: Arc::clone(pending), is_unfinished: false }));
        let mut manager = EventManager::<Subscriber>::new()?;
        manager.add_subscriber(Arc::new(Mutex::new(Wake(Arc::clone(stop)))));
        manager.add_subscriber(Arc::new(Mutex::new(Signals {
            fd: Arc::clone(signals),
            stop: Arc::clone(stop),
            control: Arc::clone(control),
        })));
        manager.add_subscriber(Arc::clone(&line) as Subscriber);
        Ok(Self {
            manager,
            stop: Arc::clone(stop),
            pending: Arc::clone(pending),
            line,
            stats: Arc::clone(stats),
        })
    }

    /// Adds what else is waited for.
    pub(crate) fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// Runs until somebody asks for a stop.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        while !self.stop.is_requested() {
            let is_unfinished = self.line.lock().is_ok_and(|line| line.is_unfinished);
            let timeout = if is_unfinished { PROMPT_MILLISECONDS } else { FOREVER };
            let events = self.manager.run_with_timeout(timeout)?;
            self.stats.wakeups.add_one();
            if events == 0 {
                self.write_unfinished();
            }
        }
        Ok(())
    }

    fn write_unfinished(&self) {
        if let Ok(mut line) = self.line.lock() {
            line.is_unfinished = self.pending.write_unfinished();
        }
    }
}

/// Wakes the loop when somebody asks for a stop.
struct Wake(Arc<Stop>);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // The loop looks at the stop itself; the counter is read so that it is not reported again.
        let _ = self.0.signal().read();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, Events::new(self.0.signal(), EventSet::IN));
    }
}

struct Signals {
    fd: Arc<SignalFd>,
    stop: Arc<Stop>,
    control: Arc<Control>,
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if let Ok(Some(signal)) = self.fd.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            // The guest runs as long as this is heard, so pause and resume find it.
            match Signal::try_from(number) {
                Ok(PAUSE) => drop(self.control.pause()),
                Ok(RESUME) => drop(self.control.resume()),
                _ => self.stop.insist(Outcome::Signal(number)),
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, Events::new(self.fd.as_ref(), EventSet::IN));
    }
}

/// The console has begun a line.
struct LineBegun {
    pending: Arc<Pending>,
    is_unfinished: bool,
}

impl MutEventSubscriber for LineBegun {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let _ = self.pending.signal().read();
        self.is_unfinished = true;
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, Events::new(self.pending.signal(), EventSet::IN));
    }
}

/// Interrupts of vectors whose routes are not committed yet.
pub(crate) struct FirstInterrupts(pub SoftwareDelivery);

impl MutEventSubscriber for FirstInterrupts {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.0.deliver();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, Events::new(&self.0, EventSet::IN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;
    use vfio_passthrough::host::MsiMessage;
    use vfio_passthrough::kvm::KvmHost;

    #[test]
    fn the_first_interrupt_of_a_vector_that_waits_wakes_the_main_thread_which_delivers_it() {
        let Ok(kvm) = Kvm::new() else {
            return eprintln!(
                "the_first_interrupt_of_a_vector did not run: /dev/kvm does not open here"
            );
        };
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let host = KvmHost::new(Arc::new(vm), 0..1, 24..64);
        let mut manager = EventManager::<Subscriber>::new().unwrap();
        let first = FirstInterrupts(host.software_delivery().unwrap());
        manager.add_subscriber(Arc::new(Mutex::new(first)));
        let mut vectors = host.services().msi.allocate(4).unwrap();
        let message = MsiMessage { address: 0xfee0_0000, data: 0x41 };
        // The first three of a VM are KVM's at once.
        (0..4).for_each(|vector| vectors.update(&[(vector, Some(message))]).unwrap());
        assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
        (0..4).for_each(|vector| vectors.trigger(vector).unwrap().write(1).unwrap());
        assert_eq!(manager.run_with_timeout(5000).unwrap(), 1);
        assert_eq!(host.calls().signal_msi.value(), 1);
        assert_eq!(manager.run_with_timeout(0).unwrap(), 0, "it is delivered");
    }
}
