//! Routes to the pins of an interrupt controller.

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip,
};

/// The route of a GSI to a pin of an interrupt controller.
pub(in crate::kvm) fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip };
    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, u, ..Default::default() }
}

/// The controller and the pin of a route.
#[cfg(test)]
pub(in crate::kvm) fn input(route: &kvm_irq_routing_entry) -> (u32, u32) {
    assert_eq!(route.type_, KVM_IRQ_ROUTING_IRQCHIP);
    // SAFETY: all variants are plain numbers, and the type says that this one is filled in.
    let input = unsafe { route.u.irqchip };
    (input.irqchip, input.pin)
}
