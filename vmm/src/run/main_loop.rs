//! The main thread's events: signals, stdin, the console's unfinished line, interrupts without a
//! route, host events of devices, and the stop.

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use vfio_passthrough::kvm::DeferredRoutes;
use vmm_sys_util::epoll::EventSet;

use super::control::Control;
use super::stats::Stats;
use super::stop::{Outcome, Stop};
use crate::error::Error;
use crate::guest::console::Pending;
use crate::host::epoll::{Subscriber, listen};
use crate::host::signals::{PAUSE, RESUME};

/// The delay before an unfinished line is written: too short to notice, and long enough to finish
/// a line.
const PROMPT_MILLISECONDS: i32 = 10;
const FOREVER: i32 = -1;

/// The event loop of the main thread.
pub(crate) struct MainLoop {
    manager: EventManager<Subscriber>,
    stop: Arc<Stop>,
    pending: Arc<Pending>,
    line: Arc<Mutex<LineBegun>>,
    stats: Arc<Stats>,
}

impl MainLoop {
    /// A loop that ends by `stop` or by a signal, and writes `pending` after a short delay.
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

    /// Adds an event source.
    pub(crate) fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// Runs until a stop is requested.
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

/// Wakes the loop when a stop is requested.
struct Wake(Arc<Stop>);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // The loop checks the stop itself. Reading the counter resets the eventfd.
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
            // The guest's life lasts longer than this loop, so pause and resume succeed.
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

/// Marks an unfinished line of the console.
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

/// Commits the routes of vectors that the guest unmasked one by one, when one of them fires.
pub(crate) struct FirstRoutes(pub DeferredRoutes);

impl MutEventSubscriber for FirstRoutes {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.0.flush();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, Events::new(&self.0, EventSet::IN));
    }
}

/// The messages of these tests are for local APICs.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;
    use vfio_passthrough::host::MsiMessage;
    use vfio_passthrough::kvm::KvmHost;

    #[test]
    fn the_first_interrupt_of_a_deferred_vector_wakes_the_main_thread_which_commits_its_route() {
        let Ok(kvm) = Kvm::new() else {
            return eprintln!("NOT RUN: a deferred route: no /dev/kvm");
        };
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let host = KvmHost::new(Arc::new(vm), 0..1, 24..64);
        let mut manager = EventManager::<Subscriber>::new().unwrap();
        let first = FirstRoutes(host.router().defer_routes().unwrap());
        manager.add_subscriber(Arc::new(Mutex::new(first)));
        let mut vectors = host.services().msi.allocate(4).unwrap();
        let message = MsiMessage { address: 0xfee0_0000, data: 0x41 };
        (0..4).for_each(|vector| vectors.update(&[(vector, Some(message))]).unwrap());
        assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
        (0..4).for_each(|vector| vectors.trigger(vector).unwrap().write(1).unwrap());
        assert_eq!(manager.run_with_timeout(5000).unwrap(), 1);
        let calls = (host.calls().set_gsi_routing.value(), host.calls().irqfd.value());
        assert_eq!(calls, (1, 4));
        assert_eq!(manager.run_with_timeout(0).unwrap(), 0, "it is delivered");
    }
}
