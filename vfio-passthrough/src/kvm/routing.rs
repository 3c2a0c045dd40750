//! MSI routing of KVM: eventfds, irqfds and one routing table for the whole VM.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
};
use kvm_ioctls::VmFd;
use vm_allocator::IdAllocator;
use vmm_sys_util::eventfd::EventFd;

use super::{allocator, errno};
use crate::counters::KvmCalls;
use crate::host::{MsiMessage, MsiRouter, MsiVectors};

/// Routes MSIs into the guest by irqfds, and keeps the VM's routing table.
pub struct KvmRouter {
    shared: Arc<Shared>,
}

struct Shared {
    vm: Arc<VmFd>,
    calls: Arc<KvmCalls>,
    table: Mutex<Table>,
}

struct Table {
    numbers: Option<IdAllocator>,
    /// How many GSIs there are in all.
    size: u32,
    /// The MSI routes, by GSI.
    routes: BTreeMap<u32, MsiMessage>,
}

impl KvmRouter {
    pub(super) fn new(vm: Arc<VmFd>, gsis: Range<u32>, calls: Arc<KvmCalls>) -> Self {
        let size = gsis.end.saturating_sub(gsis.start);
        let table = Table {
            numbers: allocator(gsis),
            size,
            routes: BTreeMap::new(),
        };
        Self {
            shared: Arc::new(Shared {
                vm,
                calls,
                table: Mutex::new(table),
            }),
        }
    }
}

impl MsiRouter for KvmRouter {
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>> {
        Ok(Box::new(Vectors {
            shared: self.shared.clone(),
            count,
            vectors: BTreeMap::new(),
        }))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocate(&self) -> io::Result<u32> {
        let mut table = self.lock();
        let number = table
            .numbers
            .as_mut()
            .and_then(|numbers| numbers.allocate_id().ok());
        number.ok_or_else(|| {
            let message = format!(
                "all {} GSIs of the VM are in use ({} by MSI routes)",
                table.size,
                table.routes.len()
            );
            io::Error::new(io::ErrorKind::StorageFull, message)
        })
    }

    /// Changes routes, with one commit of the whole table, or none where they are as they should be. After a
    /// failure the table is as it was.
    fn route(&self, changes: &[(u32, Option<MsiMessage>)]) -> io::Result<()> {
        let mut table = self.lock();
        let mut routes = table.routes.clone();
        for (gsi, message) in changes {
            match message {
                Some(message) => routes.insert(*gsi, *message),
                None => routes.remove(gsi),
            };
        }
        if routes == table.routes {
            return Ok(());
        }
        self.commit(&routes)?;
        table.routes = routes;
        Ok(())
    }

    fn commit(&self, routes: &BTreeMap<u32, MsiMessage>) -> io::Result<()> {
        let entries: Vec<_> = pins()
            .chain(routes.iter().map(|(gsi, message)| msi_entry(*gsi, *message)))
            .collect();
        let too_many = |_| io::Error::from_raw_os_error(libc::ENOSPC);
        let table = KvmIrqRouting::from_entries(&entries).map_err(too_many)?;
        self.calls.set_gsi_routing.increment();
        self.vm.set_gsi_routing(&table).map_err(errno)
    }

    fn attach(&self, eventfd: &EventFd, gsi: u32) -> io::Result<()> {
        self.calls.irqfd.increment();
        self.vm.register_irqfd(eventfd, gsi).map_err(errno)
    }

    fn detach(&self, eventfd: &EventFd, gsi: u32) -> io::Result<()> {
        self.calls.irqfd.increment();
        self.vm.unregister_irqfd(eventfd, gsi).map_err(errno)
    }

    /// Gives GSIs back whose irqfds are detached.
    fn release(&self, gsis: &[u32]) {
        let changes: Vec<_> = gsis.iter().map(|gsi| (*gsi, None)).collect();
        if let Err(error) = self.route(&changes) {
            // The routes stay, so their numbers must.
            return log::error!("{} MSI routes stay: {error}", gsis.len());
        }
        let mut table = self.lock();
        for gsi in gsis {
            if let Some(Err(error)) = table.numbers.as_mut().map(|numbers| numbers.free_id(*gsi)) {
                log::error!("GSI {gsi}: {error}");
            }
        }
    }
}

/// The pins that an x86 VM has by default, which a new table would take away: 16 of the two PICs, 24 of the
/// IOAPIC.
fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pic = (0..16_u32).map(|gsi| {
        let chip = if gsi < 8 {
            KVM_IRQCHIP_PIC_MASTER
        } else {
            KVM_IRQCHIP_PIC_SLAVE
        };
        pin_entry(gsi, chip, gsi % 8)
    });
    let ioapic = (0..24_u32).map(|gsi| pin_entry(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    pic.chain(ioapic).filter(|_| cfg!(target_arch = "x86_64"))
}

fn pin_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u,
        ..Default::default()
    }
}

fn msi_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let [low, high] =
        [message.address, message.address >> 32].map(|half| u32::try_from(half & 0xffff_ffff).unwrap_or(0));
    let devid = kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 };
    let msi = kvm_irq_routing_msi {
        address_lo: low,
        address_hi: high,
        data: message.data,
        __bindgen_anon_1: devid,
    };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u,
        ..Default::default()
    }
}

/// The vectors of one function. Each costs nothing until it is used.
struct Vectors {
    shared: Arc<Shared>,
    count: u16,
    vectors: BTreeMap<u16, Vector>,
}

struct Vector {
    eventfd: Arc<EventFd>,
    /// Taken when the vector is first delivered, and kept with its route: unmasking then costs an irqfd only.
    gsi: Option<u32>,
    attached: bool,
}

impl Vectors {
    fn vector(&mut self, vector: u16) -> io::Result<&mut Vector> {
        if vector >= self.count {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        match self.vectors.entry(vector) {
            std::collections::btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let eventfd = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
                Ok(entry.insert(Vector {
                    eventfd,
                    gsi: None,
                    attached: false,
                }))
            }
        }
    }

    /// The GSI of a vector, taken where it has none yet.
    fn gsi(&mut self, number: u16) -> io::Result<u32> {
        let shared = self.shared.clone();
        let vector = self.vector(number)?;
        match vector.gsi {
            Some(gsi) => Ok(gsi),
            None => Ok(*vector.gsi.insert(shared.allocate()?)),
        }
    }

    fn attach(&mut self, number: u16, gsi: u32) -> io::Result<()> {
        let shared = self.shared.clone();
        let vector = self.vector(number)?;
        if !vector.attached {
            // KVM looks at the eventfd when it is attached: what fired before is delivered now.
            shared.attach(&vector.eventfd, gsi)?;
            vector.attached = true;
        }
        Ok(())
    }

    fn detach(&mut self, number: u16) -> io::Result<()> {
        let Some(vector) = self.vectors.get_mut(&number).filter(|vector| vector.attached) else {
            return Ok(());
        };
        if let Some(gsi) = vector.gsi {
            self.shared.detach(&vector.eventfd, gsi)?;
        }
        vector.attached = false;
        Ok(())
    }
}

impl MsiVectors for Vectors {
    fn trigger(&mut self, vector: u16) -> io::Result<Arc<EventFd>> {
        Ok(self.vector(vector)?.eventfd.clone())
    }

    fn update(&mut self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        let mut routes = Vec::new();
        for (vector, message) in changes {
            match message {
                Some(message) => routes.push((*vector, self.gsi(*vector)?, *message)),
                // The route stays, for when the vector comes back: its irqfd is what is disarmed.
                None => self.detach(*vector)?,
            }
        }
        let changes: Vec<_> = routes
            .iter()
            .map(|(_, gsi, message)| (*gsi, Some(*message)))
            .collect();
        self.shared.route(&changes)?;
        routes
            .iter()
            .try_for_each(|(vector, gsi, _)| self.attach(*vector, *gsi))
    }

    fn is_pending(&self, vector: u16) -> bool {
        let Some(vector) = self.vectors.get(&vector).filter(|vector| !vector.attached) else {
            return false;
        };
        // An eventfd can only be looked at by reading it; what was read is put back, and adds to what came
        // meanwhile.
        vector
            .eventfd
            .read()
            .is_ok_and(|count| vector.eventfd.write(count).is_ok())
    }

    fn clear_pending(&mut self, vector: u16) {
        if let Some(vector) = self.vectors.get(&vector) {
            // EAGAIN: there was nothing.
            let _ = vector.eventfd.read();
        }
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        let numbers: Vec<u16> = self.vectors.keys().copied().collect();
        for number in numbers {
            if let Err(error) = self.detach(number) {
                // A route that its irqfd outlives crashes some hosts: both stay.
                log::error!("irqfd of MSI-X vector {number} stays, with its route: {error}");
                self.vectors.remove(&number);
            }
        }
        let gsis: Vec<u32> = self.vectors.values().filter_map(|vector| vector.gsi).collect();
        if !gsis.is_empty() {
            self.shared.release(&gsis);
        }
    }
}

#[cfg(test)]
mod tests;
