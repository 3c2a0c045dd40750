//! Two PICs and an IOAPIC.

use std::ops::Range;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry,
};

use super::pin::pin;

/// The pins of both PICs.
const PIC_PINS: u32 = 16;
/// The pins of the IOAPIC.
const IOAPIC_PINS: u32 = 24;

/// The default routes of a VM's pins. A table without them would remove them. They do not depend on
/// the range of the MSIs.
pub(in crate::kvm) fn pins(_msis: &Range<u32>) -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pic = (0..PIC_PINS).map(|gsi| {
        let chip = if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        pin(gsi, chip, gsi % 8)
    });
    let ioapic = (0..IOAPIC_PINS).map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    pic.chain(ioapic)
}

#[cfg(test)]
mod tests {
    use super::super::pin::input;
    use super::*;

    #[test]
    fn has_the_default_pins_of_an_x86_vm() {
        let pins: Vec<_> = pins(&(24..4096)).collect();
        assert_eq!(pins.len(), 40);
        let of = |gsi: u32| pins.iter().filter(|pin| pin.gsi == gsi).map(input).collect::<Vec<_>>();
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
}
