//! How the host's kernel shows that an IOMMU remaps interrupts, and the remedies if it does not, or
//! if there is no IOMMU.

/// Words of `/proc/interrupts` on a host whose IOMMU remaps interrupts: with Intel's and AMD's
/// IOMMUs, the names of remapped interrupts start with "IR-" (drivers/iommu/intel/irq_remapping.c,
/// amd/iommu.c).
pub(crate) const REMAPPED: &[&str] = &[" IR-"];

/// The remedy if interrupts are not remapped.
pub(crate) const REMAPPING_REMEDY: &str = "enable interrupt remapping (x2APIC) in the firmware, \
    and remove intremap=off from the kernel's command line";

/// The remedy if the kernel uses no IOMMU, by `/proc/cpuinfo` and the kernel's command line.
pub(crate) fn iommu_remedy(cpu: &str, command_line: &str) -> &'static str {
    match () {
        () if cpu.contains("AuthenticAMD") => {
            "enable AMD-Vi (IOMMU) in the firmware, and remove amd_iommu=off and iommu=off from the kernel's command line"
        }
        () if command_line.contains("intel_iommu=on") => "enable VT-d in the firmware",
        () => "enable VT-d in the firmware, and add intel_iommu=on to the kernel's command line",
    }
}

/// Lines of `/proc/interrupts` with remapped interrupts, and without.
#[cfg(test)]
pub(crate) const INTERRUPTS: [&str; 2] = [
    " 24:  0  0  IR-PCI-MSI-0000:00:02.0  0-edge  nvme0q0\n",
    " 24:  0  0  PCI-MSI-0000:00:02.0  0-edge  nvme0q0\n",
];

#[cfg(test)]
mod tests {
    use super::iommu_remedy;

    #[test]
    fn the_remedy_for_no_iommu_depends_on_the_cpu() {
        let cases = [
            ("GenuineIntel", "quiet", "add intel_iommu=on to the kernel's"),
            ("GenuineIntel", "quiet intel_iommu=on", "enable VT-d in the firmware"),
            ("AuthenticAMD", "quiet", "enable AMD-Vi"),
        ];
        for (cpu, command_line, remedy) in cases {
            assert!(iommu_remedy(cpu, command_line).contains(remedy), "{cpu}, {command_line}");
        }
    }
}
