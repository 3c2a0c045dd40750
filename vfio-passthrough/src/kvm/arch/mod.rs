//! What differs between architectures.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::pins;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::pins;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip,
};

/// The route of a GSI to a pin of an interrupt controller.
pub(super) fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip };
    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, u, ..Default::default() }
}

/// The controller and the pin of a route.
#[cfg(test)]
pub(super) fn input(route: &kvm_irq_routing_entry) -> (u32, u32) {
    assert_eq!(route.type_, KVM_IRQ_ROUTING_IRQCHIP);
    // SAFETY: all variants are plain numbers, and the type says that this one is filled in.
    let input = unsafe { route.u.irqchip };
    (input.irqchip, input.pin)
}
