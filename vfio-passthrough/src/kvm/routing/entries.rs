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
        let chip = if gsi < 8 {
            KVM_IRQCHIP_PIC_MASTER
        } else {
            KVM_IRQCHIP_PIC_SLAVE
        };
        pin(gsi, chip, gsi % 8)
    });
    let ioapic = (0..IOAPIC_PINS).map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    pic.chain(ioapic)
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u,
        ..Default::default()
    }
}

/// The route of a GSI to a message.
pub(super) fn msi(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = halves(message.address);
    let devid = kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 };
    let msi = kvm_irq_routing_msi {
        address_lo,
        address_hi,
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

/// A message as `KVM_SIGNAL_MSI` takes it.
pub(super) fn signal(message: MsiMessage) -> kvm_msi {
    let (address_lo, address_hi) = halves(message.address);
    kvm_msi {
        address_lo,
        address_hi,
        data: message.data,
        ..Default::default()
    }
}

fn halves(address: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}
