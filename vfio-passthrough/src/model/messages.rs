//! Message-signalled interrupts of a guest, which it counts.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Call, Guest, errno, lock};
use crate::host::{MsiMessage, MsiRouter, MsiVectors};

/// What is delivered, and what arrived.
#[derive(Default)]
pub(super) struct Messages {
    /// How often vectors were allocated: their owners have numbers.
    owners: u64,
    delivered: BTreeMap<(u64, u16), (MsiMessage, Arc<EventFd>)>,
    triggers: Vec<Weak<EventFd>>,
    arrived: BTreeMap<MsiMessage, u64>,
}

impl Messages {
    /// Takes what was signalled, as irqfds would have done each time.
    fn collect(&mut self) {
        for (message, eventfd) in self.delivered.values() {
            if let Ok(count) = eventfd.read() {
                let arrived = self.arrived.entry(*message).or_default();
                *arrived = arrived.saturating_add(count);
            }
        }
    }

    fn attach(&mut self, vector: (u64, u16), message: MsiMessage, eventfd: Arc<EventFd>) {
        // An irqfd that finds its eventfd signalled fires once, however often it was.
        if eventfd.read().is_ok() {
            let arrived = self.arrived.entry(message).or_default();
            *arrived = arrived.saturating_add(1);
        }
        self.delivered.insert(vector, (message, eventfd));
    }
}

impl Guest {
    /// The vectors that reach the guest, with their messages.
    pub fn delivered(&self) -> BTreeMap<u16, MsiMessage> {
        let messages = lock(&self.messages);
        let delivered = messages.delivered.iter();
        delivered.map(|((_, vector), (message, _))| (*vector, *message)).collect()
    }

    /// The messages that arrived since the last call, with how often.
    pub fn arrived(&self) -> BTreeMap<MsiMessage, u64> {
        let mut messages = lock(&self.messages);
        messages.collect();
        std::mem::take(&mut messages.arrived)
    }

    /// How many eventfds there are for vectors.
    pub fn triggers(&self) -> usize {
        let messages = lock(&self.messages);
        let alive = |trigger: &&Weak<EventFd>| trigger.strong_count() != 0;
        messages.triggers.iter().filter(alive).count()
    }
}

impl MsiRouter for Guest {
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>> {
        self.faults.pass(Call::AllocateVectors)?;
        let mut messages = lock(&self.messages);
        messages.owners = messages.owners.saturating_add(1);
        Ok(Box::new(Vectors {
            guest: self.clone(),
            owner: messages.owners,
            count,
            eventfds: BTreeMap::new(),
        }))
    }
}

struct Vectors {
    guest: Guest,
    owner: u64,
    count: u16,
    eventfds: BTreeMap<u16, Arc<EventFd>>,
}

impl MsiVectors for Vectors {
    fn trigger(&mut self, vector: u16) -> io::Result<Arc<EventFd>> {
        if vector >= self.count {
            return Err(errno(libc::EINVAL));
        }
        if let Some(eventfd) = self.eventfds.get(&vector) {
            return Ok(eventfd.clone());
        }
        self.guest.faults.pass(Call::Eventfd)?;
        let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        self.eventfds.insert(vector, eventfd.clone());
        let triggers = &mut lock(&self.guest.messages).triggers;
        // A dead one would keep its memory for ever.
        triggers.retain(|trigger| trigger.strong_count() != 0);
        triggers.push(Arc::downgrade(&eventfd));
        Ok(eventfd)
    }

    fn update(&mut self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        lock(&self.guest.messages).collect();
        self.guest.faults.pass(Call::Route).inspect_err(|_| {
            // An irqfd goes before its route changes: with the change failed, nothing delivers the
            // vector.
            let mut messages = lock(&self.guest.messages);
            let vectors = changes.iter().filter(|(_, message)| message.is_some());
            for (vector, _) in vectors {
                messages.delivered.remove(&(self.owner, *vector));
            }
        })?;
        for (vector, message) in changes {
            let key = (self.owner, *vector);
            match message {
                Some(message) => {
                    let eventfd = self.trigger(*vector)?;
                    lock(&self.guest.messages).attach(key, *message, eventfd);
                }
                None => drop(lock(&self.guest.messages).delivered.remove(&key)),
            }
        }
        Ok(())
    }

    fn is_pending(&self, vector: u16) -> bool {
        let delivered = lock(&self.guest.messages).delivered.contains_key(&(self.owner, vector));
        let eventfd = self.eventfds.get(&vector).filter(|_| !delivered);
        eventfd
            .is_some_and(|eventfd| eventfd.read().is_ok_and(|count| eventfd.write(count).is_ok()))
    }

    fn clear_pending(&mut self, vector: u16) {
        // What is delivered has arrived.
        lock(&self.guest.messages).collect();
        // EAGAIN: there was nothing.
        let _ = self.eventfds.get(&vector).map(|eventfd| eventfd.read());
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        let mut messages = lock(&self.guest.messages);
        messages.collect();
        messages.delivered.retain(|(owner, _), _| *owner != self.owner);
    }
}
