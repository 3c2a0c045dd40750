//! The main thread's events: signals, stdin, the console's unfinished line, interrupts that have no route yet,
//! what the host tells of devices, and the end.

mod host;

use std::io::{IsTerminal, stdin};
use std::sync::{Arc, Mutex};

use devices::{Serial, SerialError};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vfio_passthrough::kvm::DeferredRoutes;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

pub use self::host::{DeviceEvents, OnError};
use crate::Error;
use crate::console::{Input, Output, Pending, Read};
use crate::control::Control;
use crate::stats::Stats;
use crate::stop::{Outcome, Stop};

/// How long a prompt may wait to be seen: unnoticeable, and long enough for a line to be finished.
const SETTLE_MILLISECONDS: i32 = 10;
const FOREVER: i32 = -1;

/// Signals that end the VMM in order, pause the guest and let it go on; blocked everywhere, read here.
const SIGNALS: [Signal; 5] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, PAUSE, RESUME];
const PAUSE: Signal = Signal::SIGUSR1;
const RESUME: Signal = Signal::SIGUSR2;

/// A subscriber of the main loop.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber>>;

/// Blocks the signals that the main loop reads; call before any other thread starts, since threads inherit
/// it.
pub fn block_signals() -> Result<Arc<SignalFd>, Error> {
    let signals: SigSet = SIGNALS.into_iter().collect();
    signals.thread_block().map_err(Error::system("blocking signals"))?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map(Arc::new)
        .map_err(Error::system("signalfd"))
}

/// What the main thread waits for.
pub struct MainLoop {
    manager: EventManager<Subscriber>,
    stop: Arc<Stop>,
    pending: Arc<Pending>,
    line: Arc<Mutex<LineBegun>>,
    stats: Arc<Stats>,
}

impl MainLoop {
    /// A loop that ends by `stop` or by a signal, and keeps `pending` from waiting too long.
    pub fn new(
        stop: &Arc<Stop>,
        (signals, control): (&Arc<SignalFd>, &Arc<Control>),
        pending: &Arc<Pending>,
        stats: &Arc<Stats>,
    ) -> Result<Self, Error> {
        let line =
            Arc::new(Mutex::new(LineBegun { pending: Arc::clone(pending), is_settling: false }));
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
    pub fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// Runs until somebody asks for a stop.
    pub fn run(&mut self) -> Result<(), Error> {
        while !self.stop.is_requested() {
            let is_settling = self.line.lock().is_ok_and(|line| line.is_settling);
            let timeout = if is_settling { SETTLE_MILLISECONDS } else { FOREVER };
            let events = self.manager.run_with_timeout(timeout)?;
            self.stats.wakeups.add_one();
            if events == 0
                && let Ok(mut line) = self.line.lock()
            {
                line.is_settling = self.pending.settle();
            }
        }
        Ok(())
    }
}

/// Registers `fd` or says why it will not be heard.
fn listen(ops: &mut EventOps<'_>, events: Events) {
    if let Err(error) = ops.add(events) {
        log::error!("an event source is not heard: {error}");
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
    is_settling: bool,
}

impl MutEventSubscriber for LineBegun {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let _ = self.pending.signal().read();
        self.is_settling = true;
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, Events::new(self.pending.signal(), EventSet::IN));
    }
}

/// Commits the routes of vectors that the guest unmasked one by one, when one of them fires.
pub struct FirstRoutes(pub DeferredRoutes);

impl MutEventSubscriber for FirstRoutes {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.0.flush();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, Events::new(&self.0, EventSet::IN));
    }
}

/// Stdin to the serial port.
pub struct Keyboard {
    serial: Arc<Serial<Output>>,
    drained: EventFd,
    stop: Arc<Stop>,
    input: Input,
    source: Source,
}

/// How stdin is waited for.
#[derive(PartialEq, Eq)]
enum Source {
    /// By epoll: a terminal, a pipe, a socket.
    Polled,
    /// Not at all: a file is always ready, so the guest's reading sets the pace.
    Paced,
    /// It has ended.
    Ended,
}

impl Keyboard {
    /// From stdin to `serial`, which writes to `drained` when it wants more.
    pub fn new(serial: Arc<Serial<Output>>, drained: EventFd, stop: Arc<Stop>) -> Self {
        let input = Input::new(stdin().is_terminal());
        Self { serial, drained, stop, input, source: Source::Polled }
    }

    fn handle(&mut self, read: Result<Read, SerialError>, ops: &mut EventOps<'_>) {
        match read {
            Ok(Read::Taken) => {}
            Ok(Read::Full) => self.listen_to_stdin(ops, EventSet::empty()),
            Ok(Read::Quit) => self.stop.insist(Outcome::Quit),
            Ok(Read::End) => self.end(ops),
            Err(error) => {
                log::error!("no more input for the guest: {error}");
                self.end(ops);
            }
        }
    }

    fn read(&mut self, ops: &mut EventOps<'_>) -> bool {
        let serial = Arc::clone(&self.serial);
        let read = self.input.read(|bytes| serial.receive(bytes));
        let more = matches!(read, Ok(Read::Taken));
        self.handle(read, ops);
        more
    }

    fn resume(&mut self, ops: &mut EventOps<'_>) {
        let _ = self.drained.read();
        let serial = Arc::clone(&self.serial);
        let read = self.input.resume(|bytes| serial.receive(bytes));
        match read {
            Ok(Read::Taken) if self.source == Source::Paced => while self.read(ops) {},
            Ok(Read::Taken) => self.listen_to_stdin(ops, EventSet::IN),
            other => self.handle(other, ops),
        }
    }

    fn listen_to_stdin(&self, ops: &mut EventOps<'_>, events: EventSet) {
        if self.source == Source::Polled
            && let Err(error) = ops.modify(Events::new(&stdin(), events))
        {
            log::error!("stdin: {error}");
        }
    }

    fn end(&mut self, ops: &mut EventOps<'_>) {
        if self.source == Source::Polled {
            let _ = ops.remove(Events::empty(&stdin()));
        }
        self.source = Source::Ended;
    }
}

impl MutEventSubscriber for Keyboard {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        use std::os::fd::AsRawFd;
        if events.fd() == self.drained.as_raw_fd() {
            self.resume(ops);
        } else {
            self.read(ops);
        }
    }

    /// Epoll takes no regular file and no /dev/null; a closed stdin is none of these and just ends.
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, Events::new(&self.drained, EventSet::IN));
        if ops.add(Events::new(&stdin(), EventSet::IN)).is_err() {
            self.source = Source::Paced;
            while self.read(ops) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;
    use vfio_passthrough::host::MsiMessage;
    use vfio_passthrough::kvm::KvmHost;

    #[test]
    fn the_first_interrupt_of_a_deferred_vector_wakes_the_main_thread_which_commits_its_route() {
        let Ok(kvm) = Kvm::new() else {
            return eprintln!(
                "the_first_interrupt_of_a_vector did not run: /dev/kvm does not open here"
            );
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
