//! KVM's routing table as KVM takes it.

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};

use crate::host::MsiMessage;

/// How many entries a routing table can have, those of pins included (`KVM_MAX_IRQ_ROUTES`).
pub(super) const MAX_ENTRIES: u32 = 4096;

/// Pins of the two PICs of an x86 VM.
const PIC_PINS: u32 = if cfg!(target_arch = "x86_64") { 16 } else { 0 };
/// Pins of the IOAPIC of an x86 VM.
const IOAPIC_PINS: u32 = if cfg!(target_arch = "x86_64") { 24 } else { 0 };

/// How many entries [`pins`] takes.
pub(super) const PINS: u32 = PIC_PINS.saturating_add(IOAPIC_PINS);

/// The pins that an x86 VM has by default, which a new table would take away.
pub(super) fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
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

/// A message as `KVM_SIGNAL_MSI` takes it.
pub(super) fn signal(message: MsiMessage) -> kvm_msi {
    let (address_lo, address_hi) = halves(message.address);
    kvm_msi { address_lo, address_hi, data: message.data, ..Default::default() }
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
    fn the_pins_are_those_that_an_x86_vm_begins_with() {
        // SAFETY: both are plain numbers, and `pins` filled in this one.
        let input = |pin: kvm_irq_routing_entry| unsafe { pin.u.irqchip };
        let pins: Vec<_> = pins().collect();
        assert_eq!(pins.len(), PINS as usize);
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
    fn a_message_is_routed_as_it_is_signalled() {
        let message = MsiMessage { address: 0x1234_5678_fee0_1000, data: 0x4041 };
        let route = msi(24, message);
        assert_eq!((route.gsi, route.type_, route.flags), (24, KVM_IRQ_ROUTING_MSI, 0));
        // SAFETY: both are plain numbers, and `msi` filled in this one.
        let routed = unsafe { route.u.msi };
        let signalled = signal(message);
        let expected = (0xfee0_1000, 0x1234_5678, 0x4041);
        assert_eq!((routed.address_lo, routed.address_hi, routed.data), expected);
        assert_eq!((signalled.address_lo, signalled.address_hi, signalled.data), expected);
        assert_eq!(signalled.flags, 0);
    }
}
