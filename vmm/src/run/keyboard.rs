//! Passes stdin to the serial port, driven by the main loop.

use std::io::{IsTerminal, stdin};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use devices::{Serial, SerialError};
use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::stop::{Outcome, Stop};
use crate::guest::console::{Input, Output, Read};
use crate::host::epoll::listen;

/// The event subscriber of stdin.
pub(crate) struct Keyboard {
    serial: Arc<Serial<Output>>,
    drained: Arc<EventFd>,
    stop: Arc<Stop>,
    input: Input,
    source: Source,
}

/// How the main loop waits for stdin.
#[derive(PartialEq, Eq)]
enum Source {
    /// By epoll: stdin is a terminal, a pipe or a socket.
    Polled,
    /// Never: a regular file is always ready, so the guest's reads set the pace.
    Paced,
    /// Stdin has ended.
    Ended,
}

impl Keyboard {
    /// Passes stdin to `serial`, which signals `drained` when it accepts more input.
    pub(crate) fn new(serial: Arc<Serial<Output>>, drained: Arc<EventFd>, stop: Arc<Stop>) -> Self {
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
                log::error!("input for the guest failed, and the VMM stops reading it: {error}");
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
        if self.source != Source::Polled {
            return;
        }
        if let Err(error) = ops.modify(Events::new(&stdin(), events)) {
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
        if events.fd() == self.drained.as_raw_fd() {
            self.resume(ops);
        } else {
            self.read(ops);
        }
    }

    /// epoll refuses regular files and /dev/null. It also refuses a closed stdin, whose first read
    /// then ends the input.
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, Events::new(self.drained.as_ref(), EventSet::IN));
        if ops.add(Events::new(&stdin(), EventSet::IN)).is_err() {
            self.source = Source::Paced;
            while self.read(ops) {}
        }
    }
}
