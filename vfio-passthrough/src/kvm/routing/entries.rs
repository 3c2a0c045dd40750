//! KVM's routing table in KVM's format.

use std::collections::BTreeMap;
use std::io;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_irq_routing_msi__bindgen_ty_1,
};

use crate::host::MsiMessage;

/// The number of entries that a routing table can have (`KVM_MAX_IRQ_ROUTES` in linux/kvm_host.h).
pub(super) const MAX_ENTRIES: usize = 4096;

/// Pins of the two PICs of an x86 VM.
const PIC_PINS: u32 = if cfg!(target_arch = "x86_64") { 16 } else { 0 };
/// Pins of the IOAPIC of an x86 VM.
const IOAPIC_PINS: u32 = if cfg!(target_arch = "x86_64") { 24 } else { 0 };

/// All routes of a VM.
#[derive(Clone)]
pub(super) struct Routes {
    /// The VMM's own routes, by GSI. A pin of both x86 controllers has two routes.
    pub own: BTreeMap<u32, Vec<kvm_irq_routing_entry>>,
    /// The routes of functions, by GSI.
    pub msis: BTreeMap<u32, MsiMessage>,
}

impl Routes {
    /// The routes of a new VM with PICs and an IOAPIC in the kernel.
    pub fn new() -> Self {
        let mut routes = Self { own: BTreeMap::new(), msis: BTreeMap::new() };
        routes.set_own(&pins().collect::<Vec<_>>());
        routes
    }

    /// Replaces the VMM's own routes of the GSIs in `entries`.
    pub fn set_own(&mut self, entries: &[kvm_irq_routing_entry]) {
        entries.iter().for_each(|entry| drop(self.own.remove(&entry.gsi)));
        entries.iter().for_each(|entry| self.own.entry(entry.gsi).or_default().push(*entry));
    }

    /// All routes in one value.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there are more than [`MAX_ENTRIES`].
    pub fn table(&self) -> io::Result<KvmIrqRouting> {
        let msis = self.msis.iter().map(|(gsi, message)| msi(*gsi, *message));
        let entries: Vec<_> = self.own.values().flatten().copied().chain(msis).collect();
        let too_many = |_| io::Error::from_raw_os_error(libc::ENOSPC);
        KvmIrqRouting::from_entries(&entries).map_err(too_many)
    }
}

/// The default routes of an x86 VM's pins. A table without them would remove them.
fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pic = (0..PIC_PINS).map(|gsi| {
        let chip = if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        pin(gsi, chip, gsi % 8)
    });
    let ioapic = (0..IOAPIC_PINS).map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    pic.chain(ioapic)
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip };
    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, u, ..Default::default() }
}

/// The route of a GSI to a message.
pub(super) fn msi(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = halves(message.address);
    let devid = kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 };
    let msi =
        kvm_irq_routing_msi { address_lo, address_hi, data: message.data, __bindgen_anon_1: devid };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, u, ..Default::default() }
}

fn halves(address: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn has_the_default_pins_of_an_x86_vm() {
        // SAFETY: both variants are plain numbers, and `pins` filled in this one.
        let input = |pin: kvm_irq_routing_entry| unsafe { pin.u.irqchip };
        let pins: Vec<_> = pins().collect();
        assert_eq!(pins.len(), 40);
        assert!(pins.iter().all(|pin| pin.type_ == KVM_IRQ_ROUTING_IRQCHIP));
        let of = |gsi: u32| {
            let wired = pins.iter().filter(|pin| pin.gsi == gsi).copied().map(input);
            wired.map(|input| (input.irqchip, input.pin)).collect::<Vec<_>>()
        };
        assert_eq!(of(0), [(KVM_IRQCHIP_PIC_MASTER, 0), (KVM_IRQCHIP_IOAPIC, 0)]);
        assert_eq!(of(7), [(KVM_IRQCHIP_PIC_MASTER, 7), (KVM_IRQCHIP_IOAPIC, 7)]);
        assert_eq!(of(8), [(KVM_IRQCHIP_PIC_SLAVE, 0), (KVM_IRQCHIP_IOAPIC, 8)]);
        assert_eq!(of(15), [(KVM_IRQCHIP_PIC_SLAVE, 7), (KVM_IRQCHIP_IOAPIC, 15)]);
        assert_eq!(
            (of(16), of(23)),
            (vec![(KVM_IRQCHIP_IOAPIC, 16)], vec![(KVM_IRQCHIP_IOAPIC, 23)])
        );
        assert_eq!(of(24), []);
    }

    #[test]
    fn splits_the_address_of_a_message_into_halves() {
        let message = MsiMessage { address: 0x1234_5678_fee0_1000, data: 0x4041 };
        let route = msi(24, message);
        assert_eq!((route.gsi, route.type_, route.flags), (24, KVM_IRQ_ROUTING_MSI, 0));
        // SAFETY: all variants are plain numbers, and `msi` filled in this one.
        let routed = unsafe { route.u.msi };
        let expected = (0xfee0_1000, 0x1234_5678, 0x4041);
        assert_eq!((routed.address_lo, routed.address_hi, routed.data), expected);
    }

    #[test]
    fn keeps_only_the_last_routes_of_a_gsi() {
        let mut routes = Routes { own: BTreeMap::new(), msis: BTreeMap::new() };
        let message = |data| MsiMessage { address: 0xfee0_0000, data };
        routes.set_own(&[pin(3, KVM_IRQCHIP_PIC_MASTER, 3), pin(3, KVM_IRQCHIP_IOAPIC, 3)]);
        routes.set_own(&[msi(5, message(1))]);
        assert_eq!((routes.own[&3].len(), routes.own[&5].len()), (2, 1));
        routes.set_own(&[msi(3, message(2))]);
        assert_eq!(routes.own[&3].len(), 1);
        assert_eq!(routes.table().unwrap().as_slice().len(), 2);
    }
}
