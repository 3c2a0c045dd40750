//! The message-signalled interrupts of a guest, which counts them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, Weak};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::faults::{Call, Faults, errno, lock};
use crate::host::{MsiMessage, MsiVectors};

/// The routes of vectors, and the messages that arrived.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// The number of owners of vectors so far.
    owners: u64,
    routes: BTreeMap<(u64, u16), (MsiMessage, Arc<EventFd>)>,
    triggers: Vec<Weak<EventFd>>,
    arrived: BTreeMap<MsiMessage, u64>,
}

impl Messages {
    /// Reads the eventfds of all routes, as irqfds do.
    fn collect(&mut self) {
        for (message, eventfd) in self.routes.values() {
            if let Ok(count) = eventfd.read() {
                let arrived = self.arrived.entry(*message).or_default();
                *arrived = arrived.saturating_add(count);
            }
        }
    }

    fn attach(&mut self, vector: (u64, u16), message: MsiMessage, eventfd: Arc<EventFd>) {
        // An irqfd fires once if its eventfd was signalled before, for any count.
        if eventfd.read().is_ok() {
            let arrived = self.arrived.entry(message).or_default();
            *arrived = arrived.saturating_add(1);
        }
        self.routes.insert(vector, (message, eventfd));
    }

    pub fn routes(&self) -> BTreeMap<u16, MsiMessage> {
        let routes = self.routes.iter();
        routes.map(|((_, vector), (message, _))| (*vector, *message)).collect()
    }

    pub fn take_arrived(&mut self) -> BTreeMap<MsiMessage, u64> {
        self.collect();
        std::mem::take(&mut self.arrived)
    }

    /// The number of eventfds that are open.
    pub fn triggers(&self) -> usize {
        self.triggers.iter().filter(|trigger| trigger.strong_count() != 0).count()
    }
}

/// The vectors of one owner.
#[derive(Debug)]
pub(super) struct Vectors {
    faults: Arc<Faults>,
    messages: Arc<Mutex<Messages>>,
    owner: u64,
    count: u16,
    eventfds: BTreeMap<u16, Arc<EventFd>>,
}

impl Vectors {
    pub fn new(faults: &Arc<Faults>, messages: &Arc<Mutex<Messages>>, count: u16) -> Self {
        let owner = {
            let mut messages = lock(messages);
            messages.owners = messages.owners.saturating_add(1);
            messages.owners
        };
        let (faults, messages) = (faults.clone(), messages.clone());
        Self { faults, messages, owner, count, eventfds: BTreeMap::new() }
    }
}

impl MsiVectors for Vectors {
    fn trigger(&mut self, vector: u16) -> io::Result<Arc<EventFd>> {
        if vector >= self.count {
            return Err(errno(libc::EINVAL));
        }
        if let Some(eventfd) = self.eventfds.get(&vector) {
            return Ok(eventfd.clone());
        }
        self.faults.pass(Call::Eventfd)?;
        let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        self.eventfds.insert(vector, eventfd.clone());
        let triggers = &mut lock(&self.messages).triggers;
        // A dead reference would keep its memory.
        triggers.retain(|trigger| trigger.strong_count() != 0);
        triggers.push(Arc::downgrade(&eventfd));
        Ok(eventfd)
    }

    fn update(&mut self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        lock(&self.messages).collect();
        self.faults.pass(Call::Route).inspect_err(|_| {
            // A VMM detaches an irqfd before it changes the route. After the failure no route
            // remains.
            let mut messages = lock(&self.messages);
            for (vector, _) in changes.iter().filter(|(_, message)| message.is_some()) {
                messages.routes.remove(&(self.owner, *vector));
            }
        })?;
        for (vector, message) in changes {
            let key = (self.owner, *vector);
            match message {
                Some(message) => {
                    let eventfd = self.trigger(*vector)?;
                    lock(&self.messages).attach(key, *message, eventfd);
                }
                None => drop(lock(&self.messages).routes.remove(&key)),
            }
        }
        Ok(())
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        let mut messages = lock(&self.messages);
        messages.collect();
        messages.routes.retain(|(owner, _), _| *owner != self.owner);
    }
}
