//! Where the fixed devices and their interrupts are. All of them are below RAM.
//!
//! ```text
//! 0x0800_0000   GIC: distributor, ITS, then two frames of 64 KiB per CPU
//! 0x0c00_0000   serial port
//! 0x0c01_0000   GPIO controller with the power button
//! 0x0d00_0000   addresses that the host bridge translates to ports
//! 0x1000_0000   window of 32-bit BARs
//! 0x3f00_0000   ECAM of bus 0
//! 1 GiB         RAM
//! ```

use devices::GpioButton;
use resources::AddressRange;

/// The GIC's distributor (Documentation/virt/kvm/devices/arm-vgic-v3.rst: 64 KiB, and aligned so).
pub(super) const DISTRIBUTOR: AddressRange = AddressRange::new(0x800_0000, 64 << 10);
/// The ITS: its registers, and the page with the doorbell that devices write to (128 KiB,
/// Documentation/virt/kvm/devices/arm-vgic-its.rst).
pub(super) const ITS: AddressRange = AddressRange::new(0x808_0000, 128 << 10);
/// The first CPU's redistributor.
pub(super) const REDISTRIBUTORS: u64 = 0x80a_0000;
/// The frames of one redistributor: `RD_base` and `SGI_base`.
pub(super) const REDISTRIBUTOR_SIZE: u64 = 128 << 10;
/// The 16550.
pub(super) const SERIAL: AddressRange = AddressRange::new(0xc00_0000, 4 << 10);
/// The GPIO controller.
pub(super) const GPIO: AddressRange = AddressRange::new(0xc01_0000, GpioButton::SIZE);
/// The addresses that stand for the ports of I/O BARs: port 0 is at the start.
pub(super) const PORTS: AddressRange = AddressRange::new(0xd00_0000, 64 << 10);

/// The serial port's SPI.
pub(super) const SERIAL_GSI: u32 = 0;
/// The SPI of the GPIO controller, which has the power button.
pub(super) const GPIO_GSI: u32 = 1;
/// The machine has no slots whose devices come and go: the guest would need ACPI for them.
pub(crate) const HOT_PLUG_GSI: Option<u32> = None;
/// The SPIs of INTx.
const FIRST_PCI_GSI: u32 = 8;
const PCI_GSIS: u32 = 8;
/// The SPIs end here, and message-signalled interrupts begin. The GIC has 32 interrupt IDs before
/// SPIs, and the number of IDs is a multiple of 32.
pub(crate) const FIRST_MSI_GSI: u32 = 32;
/// The number of the GIC's interrupt IDs below LPIs (`KVM_DEV_ARM_VGIC_GRP_NR_IRQS`, from 64 on).
pub(super) const INTERRUPT_IDS: u32 = 32 + FIRST_MSI_GSI;

/// The SPI of a slot's interrupt pin: 0 for INTA# to 3 for INTD#. The functions of a slot can have
/// different pins. Neighbouring slots and pins have different SPIs, as on a board.
pub(crate) fn intx_gsi(slot: u8, pin: u8) -> u32 {
    let line = u32::from(slot).saturating_add(pin.into()).checked_rem(PCI_GSIS);
    FIRST_PCI_GSI.saturating_add(line.unwrap_or(0))
}

/// The redistributors of `cpus` CPUs.
pub(super) fn redistributors(cpus: u8) -> AddressRange {
    AddressRange::new(REDISTRIBUTORS, REDISTRIBUTOR_SIZE.saturating_mul(cpus.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_devices_share_an_address_or_reach_the_window() {
        let ranges = [DISTRIBUTOR, ITS, redistributors(u8::MAX), SERIAL, GPIO, PORTS];
        assert!(ranges.windows(2).all(|pair| pair[0].end() <= pair[1].start));
        assert!(PORTS.end() <= 0x1000_0000);
        let frames = [DISTRIBUTOR, ITS, redistributors(1)];
        assert!(frames.iter().all(|range| range.start % (64 << 10) == 0));
    }

    #[test]
    fn spis_of_intx_are_apart_from_those_of_fixed_devices() {
        for (slot, pin) in (0..32).flat_map(|slot| (0..4).map(move |pin| (slot, pin))) {
            let gsi = intx_gsi(slot, pin);
            assert!((FIRST_PCI_GSI..FIRST_MSI_GSI).contains(&gsi));
        }
        const { assert!(SERIAL_GSI < FIRST_PCI_GSI && GPIO_GSI < FIRST_PCI_GSI) }
    }
}
