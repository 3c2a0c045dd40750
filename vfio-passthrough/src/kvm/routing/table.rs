//! The VM's routing table, and what delivers each of its MSIs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvm_bindings::KvmIrqRouting;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::entries;
use super::gsis::Gsis;
use super::software::{PATIENCE, PROMPT, WaitingSet};
use crate::counters::KvmCalls;
use crate::host::MsiMessage;
use crate::kvm::errno;

/// The MSIs of one VM, each by its GSI. One is delivered by its irqfd (*attached*), by the VMM until its route
/// is committed (*waiting*), or not at all: its eventfd then collects what fires.
pub(super) struct Table {
    vm: Arc<VmFd>,
    calls: Arc<KvmCalls>,
    gsis: Gsis,
    /// Of every GSI that is taken.
    eventfds: BTreeMap<u32, Arc<EventFd>>,
    /// As KVM has them. A vector that is masked keeps its own.
    routes: BTreeMap<u32, MsiMessage>,
    attached: BTreeSet<u32>,
    waiting: BTreeMap<u32, MsiMessage>,
    /// Where somebody delivers what waits.
    waiting_set: Option<Arc<WaitingSet>>,
    /// So many more single vectors have their routes at once.
    prompt: u32,
    /// The vectors of which the VMM delivered an interrupt since the last commit.
    delivered: BTreeSet<u32>,
    /// One of them fired again: it is in use, and so probably are those beside it.
    is_in_use: bool,
}

impl Table {
    pub(super) fn new(vm: Arc<VmFd>, gsis: Range<u32>, calls: Arc<KvmCalls>) -> Self {
        Self {
            vm,
            calls,
            gsis: Gsis::new(gsis),
            eventfds: BTreeMap::new(),
            routes: BTreeMap::new(),
            attached: BTreeSet::new(),
            waiting: BTreeMap::new(),
            waiting_set: None,
            prompt: PROMPT,
            delivered: BTreeSet::new(),
            is_in_use: false,
        }
    }

    /// A GSI for each of these, or none for any.
    pub(super) fn take(&mut self, eventfds: &[Arc<EventFd>]) -> io::Result<Vec<u32>> {
        let gsis = self.gsis.allocate(eventfds.len())?;
        self.eventfds.extend(gsis.iter().copied().zip(eventfds.iter().cloned()));
        Ok(gsis)
    }

    /// Nothing is left of any vector.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let maps = self.eventfds.is_empty() && self.routes.is_empty() && self.waiting.is_empty();
        maps && self.attached.is_empty() && self.gsis.are_free()
    }

    /// Single vectors wait from now on.
    #[cfg(test)]
    pub(super) fn end_prompt(&mut self) {
        self.prompt = 0;
    }

    /// The GSIs that have routes.
    #[cfg(test)]
    pub(super) fn routed(&self) -> Vec<u32> {
        self.routes.keys().copied().collect()
    }

    /// Neither attached nor waiting.
    pub(super) fn is_off(&self, gsi: u32) -> bool {
        !self.attached.contains(&gsi) && !self.waiting.contains_key(&gsi)
    }

    /// Delivers GSIs as these messages, or stops doing so. At most one commit.
    pub(super) fn update(&mut self, changes: &[(u32, Option<MsiMessage>)]) -> io::Result<()> {
        let mut new = Vec::new();
        for (gsi, message) in changes {
            match message {
                // The route stays, for when the vector comes back: its irqfd is what is disarmed.
                None => self.stop(*gsi)?,
                Some(message) if self.resume(*gsi, *message)? => {}
                Some(message) => new.push((*gsi, Some(*message))),
            }
        }
        match new.as_slice() {
            [] => Ok(()),
            [(gsi, Some(message))] if self.wait(*gsi, *message) => {
                self.settle_when_due();
                Ok(())
            }
            _ => {
                self.commit(&new)?;
                new.iter().try_for_each(|(gsi, _)| self.attach(*gsi))
            }
        }
    }

    /// Gives GSIs back, with one commit. What the kernel does not let go of stays.
    pub(super) fn release(&mut self, gsis: &[u32]) {
        let mut stopped = Vec::new();
        for gsi in gsis {
            match self.stop(*gsi) {
                Ok(()) => stopped.push((*gsi, None)),
                // A route that its irqfd outlives crashes some hosts: both stay.
                Err(error) => log::error!("the irqfd on GSI {gsi} stays, with its route: {error}"),
            }
        }
        let routed = stopped.iter().any(|(gsi, _)| self.routes.contains_key(gsi));
        if routed {
            if let Err(error) = self.commit(&stopped) {
                // The routes stay, so their numbers must.
                return log::error!("{} MSI routes stay: {error}", stopped.len());
            }
        }
        for (gsi, _) in stopped {
            self.eventfds.remove(&gsi);
            self.gsis.free(gsi);
        }
    }

    /// From now on single vectors wait, in `set`.
    pub(super) fn begin_waiting(&mut self, set: Arc<WaitingSet>) -> io::Result<()> {
        if self.waiting_set.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.waiting_set = Some(set);
        Ok(())
    }

    /// From now on none waits.
    pub(super) fn end_waiting(&mut self) {
        if !self.waiting.is_empty() {
            self.settle();
        }
        self.waiting_set = None;
    }

    /// Delivers what fired of the vectors that wait.
    pub(super) fn deliver(&mut self) {
        let fired = self.waiting_set.as_ref().map(|set| set.fired());
        for gsi in fired.unwrap_or_default() {
            let Some((message, eventfd)) = self.waiting.get(&gsi).zip(self.eventfds.get(&gsi))
            else {
                continue;
            };
            if eventfd.read().is_ok() {
                self.calls.signal_msi.increment();
                // A message that no CPU takes is lost, as it is by an irqfd.
                let _ = self.vm.signal_msi(entries::signal(*message));
                self.is_in_use |= !self.delivered.insert(gsi);
            }
        }
        self.settle_when_due();
    }

    /// True where the vector is delivered as this message now, without a commit; else it is not delivered,
    /// since an irqfd goes before its route changes.
    fn resume(&mut self, gsi: u32, message: MsiMessage) -> io::Result<bool> {
        if let Some(waiting) = self.waiting.get_mut(&gsi) {
            *waiting = message;
            return Ok(true);
        }
        let routed = self.routes.get(&gsi) == Some(&message);
        match routed {
            true => self.attach(gsi)?,
            false => self.detach(gsi)?,
        }
        Ok(routed)
    }

    fn stop(&mut self, gsi: u32) -> io::Result<()> {
        if self.waiting.remove(&gsi).is_some() {
            self.leave_waiting_set(gsi);
        }
        self.detach(gsi)
    }

    /// Lets a vector wait; false where nobody would deliver it, and for the first few.
    fn wait(&mut self, gsi: u32, message: MsiMessage) -> bool {
        if let Some(left) = self.prompt.checked_sub(1) {
            self.prompt = left;
            return false;
        }
        let Some((set, eventfd)) = self.waiting_set.as_ref().zip(self.eventfds.get(&gsi)) else {
            return false;
        };
        let result = set.insert(gsi, eventfd);
        if let Err(error) = &result {
            log::debug!("GSI {gsi} does not wait: {error}");
        } else {
            self.waiting.insert(gsi, message);
        }
        result.is_ok()
    }

    fn leave_waiting_set(&self, gsi: u32) {
        let member = self.waiting_set.as_ref().zip(self.eventfds.get(&gsi));
        if let Some(Err(error)) = member.map(|(set, eventfd)| set.remove(eventfd)) {
            log::error!("the eventfd of GSI {gsi} stays in the epoll set: {error}");
        }
    }

    fn settle_when_due(&mut self) {
        if self.waiting.len() >= PATIENCE || self.is_in_use {
            self.settle();
        }
    }

    /// Gives the vectors that wait their routes. Where that fails they go on waiting, and lose nothing.
    fn settle(&mut self) {
        if let Err(error) = self.commit(&[]) {
            log::warn!("{} MSI vectors wait on: KVM_SET_GSI_ROUTING: {error}", self.waiting.len());
        }
    }

    /// Changes routes, and gives those that wait theirs: one commit. After a failure all is as it was.
    fn commit(&mut self, changes: &[(u32, Option<MsiMessage>)]) -> io::Result<()> {
        self.delivered.clear();
        self.is_in_use = false;
        let mut routes = self.routes.clone();
        routes.extend(&self.waiting);
        for (gsi, message) in changes {
            match message {
                Some(message) => routes.insert(*gsi, *message),
                None => routes.remove(gsi),
            };
        }
        self.set_routing(&routes)?;
        self.routes = routes;
        for (gsi, message) in std::mem::take(&mut self.waiting) {
            match self.attach(gsi) {
                Ok(()) => self.leave_waiting_set(gsi),
                Err(error) => {
                    log::warn!("GSI {gsi} waits on: KVM_IRQFD: {error}");
                    self.waiting.insert(gsi, message);
                }
            }
        }
        Ok(())
    }

    pub(super) fn set_routing(&self, routes: &BTreeMap<u32, MsiMessage>) -> io::Result<()> {
        let msis = routes.iter().map(|(gsi, message)| entries::msi(*gsi, *message));
        let entries: Vec<_> = entries::pins().chain(msis).collect();
        let too_many = |_| io::Error::from_raw_os_error(libc::ENOSPC);
        let table = KvmIrqRouting::from_entries(&entries).map_err(too_many)?;
        self.calls.set_gsi_routing.increment();
        self.vm.set_gsi_routing(&table).map_err(errno)
    }

    /// Attaches the irqfd. KVM looks at the eventfd then: what fired before is delivered now.
    fn attach(&mut self, gsi: u32) -> io::Result<()> {
        let eventfd = self.eventfds.get(&gsi).filter(|_| !self.attached.contains(&gsi));
        if let Some(eventfd) = eventfd {
            self.calls.irqfd.increment();
            self.vm.register_irqfd(eventfd, gsi).map_err(errno)?;
            self.attached.insert(gsi);
        }
        Ok(())
    }

    fn detach(&mut self, gsi: u32) -> io::Result<()> {
        let eventfd = self.eventfds.get(&gsi).filter(|_| self.attached.contains(&gsi));
        if let Some(eventfd) = eventfd {
            self.calls.irqfd.increment();
            self.vm.unregister_irqfd(eventfd, gsi).map_err(errno)?;
            self.attached.remove(&gsi);
        }
        Ok(())
    }
}
