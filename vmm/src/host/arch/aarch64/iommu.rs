//! How the host's kernel shows that devices cannot send any interrupt, and the remedies if they
//! can, or if there is no IOMMU.

/// Words of `/proc/interrupts` on a host whose interrupt controller tells devices apart by their
/// device IDs: a GICv3 or later with its ITS (drivers/irqchip/irq-gic-v3-its-msi-parent.c,
/// `IRQ_DOMAIN_FLAG_ISOLATED_MSI`). The timer's interrupt is always listed.
pub(crate) const REMAPPED: &[&str] = &[" GICv3 ", " GICv5", " ITS-"];

/// The remedy if interrupts are not remapped.
pub(crate) const REMAPPING_REMEDY: &str = "use a machine with a GICv3 and its ITS";

/// The remedy if the kernel uses no IOMMU.
pub(crate) fn iommu_remedy(_: &str, _: &str) -> &'static str {
    "enable the SMMU in the firmware, and use a kernel with its driver (CONFIG_ARM_SMMU_V3 or \
     CONFIG_ARM_SMMU)"
}

/// Lines of `/proc/interrupts` on a host with a GICv3, and with a GICv2.
#[cfg(test)]
pub(crate) const INTERRUPTS: [&str; 2] =
    [" 11:  68  GICv3  27 Level  arch_timer\n", " 11:  68  GICv2  27 Level  arch_timer\n"];
