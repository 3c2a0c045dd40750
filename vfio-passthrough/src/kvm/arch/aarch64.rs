//! A GIC. KVM numbers its only controller 0, and the pins are the GIC's shared peripheral
//! interrupts (SPIs): pin 0 is the interrupt ID 32.

use std::ops::Range;

use kvm_bindings::kvm_irq_routing_entry;

use super::pin::pin;

/// The number of SPIs that KVM's routing knows: the interrupt IDs 32 to 1019
/// (`KVM_IRQCHIP_NUM_PINS` in arch/arm64/include/asm/kvm_host.h).
const SPIS: u32 = 988;

/// The routes of a VM's pins, one for each GSI before the MSIs. KVM's own default table has one for
/// each SPI of the GIC. A table without them would remove them.
pub(in crate::kvm) fn pins(msis: &Range<u32>) -> impl Iterator<Item = kvm_irq_routing_entry> {
    (0..msis.start.min(SPIS)).map(|gsi| pin(gsi, 0, gsi))
}

#[cfg(test)]
mod tests {
    use super::super::pin::input;
    use super::*;

    #[test]
    fn routes_each_gsi_before_the_msis_to_the_spi_of_its_number() {
        let pins: Vec<_> = pins(&(64..4096)).collect();
        assert_eq!(pins.len(), 64);
        assert!(pins.iter().all(|pin| input(pin) == (0, pin.gsi)));
        assert_eq!(super::pins(&(2000..4096)).count(), 988);
    }
}
