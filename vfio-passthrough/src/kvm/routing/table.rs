//! The VM's routing table, and the irqfds of functions' vectors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvm_bindings::kvm_irq_routing_entry;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::entries::{MAX_ENTRIES, Msi, Routes};
use super::eventfds::{EventfdSet, MAX_DEFERRED};
use super::gsis::Gsis;
use crate::counters::KvmCalls;
use crate::kvm::errno::errno;

/// The MSIs of one VM, by GSI. An MSI is *attached* if its irqfd delivers it, or *deferred* if it
/// will be attached once it fires. Otherwise it is not delivered, and its eventfd collects
/// interrupts.
pub(super) struct Table {
    vm: Arc<VmFd>,
    calls: Arc<KvmCalls>,
    gsis: Gsis,
    /// The eventfd of each GSI of a function.
    eventfds: BTreeMap<u32, Arc<EventFd>>,
    /// The routes that KVM has. A masked vector keeps its route.
    routes: Routes,
    attached: BTreeSet<u32>,
    deferred: BTreeMap<u32, Msi>,
    /// The epoll set in which the VMM polls the eventfds of deferred vectors.
    polled: Option<Arc<EventfdSet>>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("gsis", &self.gsis)
            .field("routes", &self.routes.msis)
            .field("own", &self.routes.own.keys())
            .field("attached", &self.attached)
            .field("deferred", &self.deferred)
            .finish_non_exhaustive()
    }
}

impl Table {
    /// The number of GSIs in use.
    pub(super) fn used(&self) -> u32 {
        self.gsis.used()
    }

    pub(super) fn new(vm: Arc<VmFd>, gsis: Range<u32>, calls: Arc<KvmCalls>) -> Self {
        Self {
            vm,
            calls,
            routes: Routes::new(&gsis),
            gsis: Gsis::new(gsis),
            eventfds: BTreeMap::new(),
            attached: BTreeSet::new(),
            deferred: BTreeMap::new(),
            polled: None,
        }
    }

    /// Allocates a GSI for each of these eventfds, or none.
    pub(super) fn take(&mut self, eventfds: &[Arc<EventFd>]) -> io::Result<Vec<u32>> {
        let gsis = self.gsis.allocate(eventfds.len(), self.room())?;
        self.eventfds.extend(gsis.iter().copied().zip(eventfds.iter().cloned()));
        Ok(gsis)
    }

    /// Allocates a GSI for the VMM.
    pub(super) fn take_own(&mut self) -> io::Result<u32> {
        self.gsis.allocate_own(self.room())
    }

    /// The number of entries that GSIs in the allocator's range can have.
    fn room(&self) -> usize {
        let others = self.routes.own.iter().filter(|(gsi, _)| !self.gsis.is_given_out(**gsi));
        MAX_ENTRIES.saturating_sub(others.map(|(_, entries)| entries.len()).sum())
    }

    /// Replaces the VMM's routes of the GSIs in `entries`.
    pub(super) fn set_own(&mut self, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
        if entries.iter().any(|entry| !self.gsis.is_vmms(entry.gsi)) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.commit(|routes| routes.set_own(entries))
    }

    /// Removes the VMM's routes of these GSIs.
    pub(super) fn remove_own(&mut self, gsis: Range<u32>) -> io::Result<()> {
        match self.routes.own.range(gsis.clone()).next() {
            Some(_) => self.commit(|routes| routes.own.retain(|gsi, _| !gsis.contains(gsi))),
            None => Ok(()),
        }
    }

    /// Frees a GSI of the VMM. If KVM refuses to remove its route, both stay.
    pub(super) fn release_own(&mut self, gsi: u32) {
        match self.remove_own(gsi..gsi.saturating_add(1)) {
            Ok(()) => self.gsis.free(gsi),
            Err(error) => log::error!("the route of GSI {gsi} stays: {error}"),
        }
    }

    /// No vector has anything left.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(super) fn is_empty(&self) -> bool {
        let maps = self.eventfds.is_empty() && self.routes.msis.is_empty();
        maps && self.deferred.is_empty() && self.attached.is_empty() && self.gsis.are_free()
    }

    /// The GSIs of functions that have routes.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(super) fn routed(&self) -> Vec<u32> {
        self.routes.msis.keys().copied().collect()
    }

    /// Delivers GSIs as these messages, or stops delivery. It makes at most one commit.
    pub(super) fn update(&mut self, changes: &[(u32, Option<Msi>)]) -> io::Result<()> {
        let mut new = Vec::new();
        for (gsi, msi) in changes {
            match msi {
                // Only the irqfd is detached. The route stays for the time when the vector is
                // unmasked.
                None => self.stop(*gsi)?,
                Some(msi) if self.resume(*gsi, *msi)? => {}
                Some(msi) => new.push((*gsi, *msi)),
            }
        }
        match new.as_slice() {
            [] => Ok(()),
            [(gsi, msi)] if self.defer(*gsi, *msi) => {
                if self.deferred.len() >= MAX_DEFERRED {
                    self.flush_deferred();
                }
                Ok(())
            }
            _ => {
                self.commit(|routes| routes.msis.extend(new.iter().copied()))?;
                new.iter().try_for_each(|(gsi, _)| self.attach(*gsi))
            }
        }
    }

    /// Frees GSIs, with one commit. If KVM refuses to detach an irqfd or to remove routes, they
    /// stay with their GSIs.
    pub(super) fn release(&mut self, gsis: &[u32]) {
        let mut stopped = BTreeSet::new();
        for gsi in gsis {
            match self.stop(*gsi) {
                Ok(()) => {
                    stopped.insert(*gsi);
                }
                // An irqfd without its route crashes some hosts, so both stay.
                Err(error) => log::error!("the irqfd on GSI {gsi} stays, with its route: {error}"),
            }
        }
        let routed = stopped.iter().any(|gsi| self.routes.msis.contains_key(gsi));
        let unroute = |routes: &mut Routes| routes.msis.retain(|gsi, _| !stopped.contains(gsi));
        if routed {
            if let Err(error) = self.commit(unroute) {
                // The routes stay, so their GSIs cannot be freed.
                return log::error!("{} MSI routes stay: {error}", stopped.len());
            }
        }
        for gsi in stopped {
            self.eventfds.remove(&gsi);
            self.gsis.free(gsi);
        }
    }

    /// Starts to defer the routes of single vectors. The VMM polls `set`.
    pub(super) fn begin_deferring(&mut self, set: Arc<EventfdSet>) -> io::Result<()> {
        if self.polled.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.polled = Some(set);
        Ok(())
    }

    /// Commits deferred routes, and stops deferring.
    pub(super) fn end_deferring(&mut self) {
        self.flush_deferred();
        self.polled = None;
    }

    /// Commits deferred routes if one of their vectors has fired.
    pub(super) fn flush_if_fired(&mut self) {
        if self.polled.as_ref().is_some_and(|set| set.has_fired()) {
            self.flush_deferred();
        }
    }

    /// Delivers the vector as this message if that needs no commit, and returns whether it does.
    /// Otherwise the irqfd is detached: it must not be attached while its route changes.
    fn resume(&mut self, gsi: u32, msi: Msi) -> io::Result<bool> {
        if let Some(deferred) = self.deferred.get_mut(&gsi) {
            *deferred = msi;
            return Ok(true);
        }
        let routed = self.routes.msis.get(&gsi) == Some(&msi);
        match routed {
            true => self.attach(gsi)?,
            false => self.detach(gsi)?,
        }
        Ok(routed)
    }

    fn stop(&mut self, gsi: u32) -> io::Result<()> {
        if self.deferred.remove(&gsi).is_some() {
            self.stop_polling(gsi);
        }
        self.detach(gsi)
    }

    /// Defers the route of a vector. Returns false if the VMM does not poll.
    fn defer(&mut self, gsi: u32, msi: Msi) -> bool {
        let Some((set, eventfd)) = self.polled.as_ref().zip(self.eventfds.get(&gsi)) else {
            return false;
        };
        let result = set.insert(eventfd);
        match &result {
            Ok(()) => {
                self.deferred.insert(gsi, msi);
            }
            Err(error) => log::debug!("the route of GSI {gsi} is not deferred: {error}"),
        }
        result.is_ok()
    }

    fn stop_polling(&self, gsi: u32) {
        let member = self.polled.as_ref().zip(self.eventfds.get(&gsi));
        if let Some(Err(error)) = member.map(|(set, eventfd)| set.remove(eventfd)) {
            log::error!("the eventfd of GSI {gsi} stays in the epoll set: {error}");
        }
    }

    /// Commits deferred routes. If that fails they stay deferred, and no interrupt is lost.
    fn flush_deferred(&mut self) {
        let count = self.deferred.len();
        let committed = if count == 0 { Ok(()) } else { self.commit(|_| ()) };
        if let Err(error) = committed {
            log::warn!("{count} MSI routes stay deferred: KVM_SET_GSI_ROUTING: {error}");
        }
    }

    /// Changes routes and commits deferred ones, with one call. A failure changes nothing.
    fn commit(&mut self, change: impl FnOnce(&mut Routes)) -> io::Result<()> {
        let mut routes = self.routes.clone();
        routes.msis.extend(&self.deferred);
        change(&mut routes);
        self.set_routing(&routes)?;
        self.routes = routes;
        for (gsi, msi) in std::mem::take(&mut self.deferred) {
            match self.attach(gsi) {
                Ok(()) => self.stop_polling(gsi),
                Err(error) => {
                    log::warn!("GSI {gsi} stays deferred: KVM_IRQFD: {error}");
                    self.deferred.insert(gsi, msi);
                }
            }
        }
        Ok(())
    }

    pub(super) fn set_routing(&self, routes: &Routes) -> io::Result<()> {
        let table = routes.table()?;
        self.calls.set_gsi_routing.increment();
        self.vm.set_gsi_routing(&table).map_err(errno)
    }

    /// Attaches the irqfd. KVM then delivers the interrupts that the eventfd has collected.
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
