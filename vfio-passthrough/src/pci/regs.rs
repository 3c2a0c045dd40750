//! Offsets and bits of config space registers, with the section that defines each. "PCI" is PCI
//! Local Bus 3.0, "PCIe" is PCI Express Base 5.0, "PM" is PCI Power Management 1.2.

/// Vendor ID (PCI 6.2.1).
pub const VENDOR_ID: u16 = 0x00;
/// Command (PCI 6.2.2).
pub const COMMAND: u16 = 0x04;
/// Status (PCI 6.2.3).
pub const STATUS: u16 = 0x06;
/// Revision ID (PCI 6.2.1); the class code follows.
pub const REVISION: u16 = 0x08;
/// Cache Line Size (PCI 6.2.4); the latency timer follows.
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Header Type (PCI 6.2.1). Without [`MULTIFUNCTION`]: 0 for a function that is no bridge.
pub const HEADER_TYPE: u16 = 0x0e;
/// BIST: built-in self test (PCI 6.2.4).
pub const BIST: u16 = 0x0f;
/// The first base address register (PCI 6.2.5.1).
pub const BAR0: u16 = 0x10;
/// The end of the six BARs, and the offset of the CardBus CIS pointer (PCI 6.2.4).
pub const BARS_END: u16 = 0x28;
/// Expansion ROM Base Address (PCI 6.2.5.2).
pub const ROM: u16 = 0x30;
/// The end of [`ROM`].
pub const ROM_END: u16 = 0x34;
/// Bit of [`ROM`]: the ROM is decoded.
pub const ROM_ENABLE: u32 = 1;
/// Capabilities Pointer (PCI 6.7).
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt Line (PCI 6.2.4).
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt Pin (PCI 6.2.4).
pub const INTERRUPT_PIN: u16 = 0x3d;
/// A value of [`INTERRUPT_PIN`]: INTA#.
pub const INTA: u8 = 1;
/// The largest value of [`INTERRUPT_PIN`]: INTD#.
pub const LAST_PIN: u8 = 4;
/// The end of the header, and the lowest offset of a capability.
pub const HEADER_END: u16 = 0x40;
/// The size of conventional config space in bytes, and the start of extended config space (PCIe
/// 7.2).
pub const CONVENTIONAL_SIZE: u16 = 0x100;
/// The size of a PCI Express function's config space in bytes (PCIe 7.2).
pub const EXTENDED_SIZE: u16 = 0x1000;

/// Bit of [`STATUS`], Interrupt Status: an INTx interrupt is pending, even if `INTX_DISABLE` is
/// set.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Bit of [`STATUS`], Capabilities List: the function has a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Bit of [`HEADER_TYPE`]: the device has more than one function.
pub const MULTIFUNCTION: u8 = 1 << 7;

/// Bit of a BAR: it decodes I/O space.
pub const BAR_IO: u32 = 1;
/// Bits of a memory BAR: its type; see [`BAR_64`].
pub const BAR_TYPE: u32 = 0b110;
/// Value of [`BAR_TYPE`]: the BAR has 64 bits, and the next register is its upper half.
pub const BAR_64: u32 = 0b100;
/// Bit of a memory BAR: prefetchable.
pub const BAR_PREFETCHABLE: u32 = 0b1000;

bitflags::bitflags! {
    /// The command register (PCI 6.2.2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Command: u16 {
        /// The function decodes I/O BARs.
        const IO = 1 << 0;
        /// The function decodes memory BARs.
        const MEMORY = 1 << 1;
        /// The function may do DMA and send MSIs.
        const BUS_MASTER = 1 << 2;
        /// Parity Error Response: the function reports parity errors.
        const PARITY = 1 << 6;
        /// SERR# Enable: the function may report errors to the host.
        const SERR = 1 << 8;
        /// Interrupt Disable: the function must not assert INTx.
        const INTX_DISABLE = 1 << 10;
    }
}

/// Identifiers of capabilities (PCI Code and ID Assignment 1.11, 2).
pub mod cap {
    /// Power management.
    pub const PM: u8 = 0x01;
    /// Vital product data.
    pub const VPD: u8 = 0x03;
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// PCI-X.
    pub const PCI_X: u8 = 0x07;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
    /// SATA: the place of AHCI's index and data registers.
    pub const SATA: u8 = 0x12;
    /// Advanced features: FLR of conventional PCI.
    pub const AF: u8 = 0x13;
}

/// Identifiers of extended capabilities (PCI Code and ID Assignment 1.11, 3).
pub mod ext {
    /// Advanced error reporting.
    pub const AER: u16 = 0x0001;
    /// Power budgeting.
    pub const POWER_BUDGETING: u16 = 0x0004;
    /// Vendor-specific registers.
    pub const VSEC: u16 = 0x000b;
    /// Designated vendor-specific: registers that a vendor or a consortium defines.
    pub const DVSEC: u16 = 0x0023;
    /// The null capability. It stands at 0x100 if the first capability of a list is hidden: a list
    /// must start at 0x100.
    pub const NULL: u16 = 0x0000;
}

/// Offset in the power management capability: Power Management Capabilities (PM 3.2.3).
pub const PM_CAPABILITIES: u16 = 2;
/// Bits of [`PM_CAPABILITIES`]: the version of the capability.
pub const PM_VERSION: u8 = 0b111;
/// The largest [`PM_VERSION`] that is not reserved.
pub const PM_LAST_VERSION: u8 = 3;
/// Offset in the power management capability: control and status (PM 3.2.4).
pub const PM_CONTROL: u16 = 4;
/// Bits of [`PM_CONTROL`]: the power state, 0 for D0 to 3 for D3hot.
pub const PM_STATE: u16 = 0b11;

/// Offset in the PCI Express capability: PCI Express Capabilities (PCIe 7.5.3.2).
pub const EXPRESS_FLAGS: u16 = 2;
/// Bits of [`EXPRESS_FLAGS`]: device/port type.
pub const EXPRESS_TYPE: u16 = 0x00f0;
/// A [`EXPRESS_TYPE`]: root complex integrated endpoint.
pub const EXPRESS_INTEGRATED: u16 = 0x0090;
/// Bits of [`EXPRESS_FLAGS`]: the version of the capability.
pub const EXPRESS_VERSION: u16 = 0x000f;
/// Offset in the PCI Express capability: the lowest byte of Device Capabilities (PCIe 7.5.3.3).
pub const EXPRESS_DEVICE: u16 = 4;
/// Bits of [`EXPRESS_DEVICE`]: phantom functions. They would use requester IDs that the IOMMU does
/// not know, so VFIO does not let them be enabled (vfio_pci_config.c, init_pci_cap_exp_perm).
pub const EXPRESS_PHANTOM: u8 = 0b11 << 3;
/// Offset in the PCI Express capability: the highest byte of Device Capabilities (PCIe 7.5.3.3).
pub const EXPRESS_CAPABLE: u16 = 7;
/// Bit of [`EXPRESS_CAPABLE`]: the function supports FLR.
pub const EXPRESS_FLR_CAPABLE: u8 = 1 << 4;
/// Offsets in the PCI Express capability, version 1: link registers (PCIe 1.1, 7.8).
pub const EXPRESS_LINK_1: std::ops::Range<u16> = 0x0c..0x14;
/// Offsets in the PCI Express capability: link, slot and root registers (PCIe 7.5.3.6 to 7.5.3.14).
pub const EXPRESS_LINK: std::ops::Range<u16> = 0x0c..0x24;
/// Offsets in the PCI Express capability: the second link and slot registers (PCIe 7.5.3.18 to
/// 7.5.3.23).
pub const EXPRESS_LINK_2: std::ops::Range<u16> = 0x2c..0x3c;
/// Offset in the PCI Express capability: Device Capabilities 2 (PCIe 7.5.3.15).
pub const EXPRESS_CAPABLE_2: u16 = 0x24;
/// Bits of [`EXPRESS_CAPABLE_2`] that need the port above the function: ARI forwarding, LTR, requests
/// with 10-bit tags, OBFF, FRS.
pub const EXPRESS_NEEDS_PORT: u32 = 1 << 5 | 1 << 11 | 1 << 17 | 0b11 << 18 | 1 << 31;
/// Offset in the PCI Express capability: Device Control 2 (PCIe 7.5.3.16).
pub const EXPRESS_CONTROL_2: u16 = 0x28;
/// Bits of [`EXPRESS_CONTROL_2`] that enable what [`EXPRESS_NEEDS_PORT`] reports: ARI forwarding,
/// LTR, requests with 10-bit tags, OBFF.
pub const EXPRESS_NEEDS_PORT_ENABLE: u16 = 1 << 5 | 1 << 10 | 1 << 12 | 0b11 << 13;
/// Offset in the PCI Express capability: Device Control (PCIe 7.5.3.4).
pub const EXPRESS_CONTROL: u16 = 8;
/// Bit of [`EXPRESS_CONTROL`]: phantom functions are enabled.
pub const EXPRESS_PHANTOM_ENABLE: u16 = 1 << 9;
/// Bit of the upper byte of [`EXPRESS_CONTROL`]: initiate an FLR. It reads as 0.
pub const EXPRESS_FLR: u8 = 1 << 7;

/// Offset in the Advanced Features capability: AF Capabilities (Advanced Capabilities for
/// Conventional PCI ECN).
pub const AF_CAPABLE: u16 = 3;
/// Bit of [`AF_CAPABLE`]: the function supports FLR.
pub const AF_FLR_CAPABLE: u8 = 1 << 1;
/// Offset in the Advanced Features capability: AF Control (Advanced Capabilities for Conventional
/// PCI ECN).
pub const AF_CONTROL: u16 = 4;
/// Bit of [`AF_CONTROL`]: initiate an FLR. It reads as 0.
pub const AF_FLR: u8 = 1;

/// Offset in the vendor-specific capability: its length in bytes (PCI 6.7).
pub const VENDOR_LENGTH: u16 = 2;
/// Offset in the extended vendor-specific capabilities VSEC and DVSEC: their length in bytes, in the
/// upper 12 of 16 bits (PCIe 7.9.5.2, 7.9.6.2).
pub const EXTENDED_LENGTH: u16 = 6;

/// Offset in the MSI-X capability: message control (PCI 6.8.2.3).
pub const MSIX_CONTROL: u16 = 2;
/// Offset in the MSI-X capability: the table's BAR and offset (PCI 6.8.2.4).
pub const MSIX_TABLE: u16 = 4;
/// Offset in the MSI-X capability: the PBA's BAR and offset (PCI 6.8.2.5).
pub const MSIX_PBA: u16 = 8;
/// Bits of [`MSIX_CONTROL`]: the number of table entries, minus one.
pub const MSIX_SIZE: u16 = 0x07ff;
/// Bit of [`MSIX_CONTROL`], Function Mask: every vector is masked.
pub const MSIX_FUNCTION_MASK: u16 = 1 << 14;
/// Bit of [`MSIX_CONTROL`]: MSI-X is enabled.
pub const MSIX_ENABLE: u16 = 1 << 15;

/// Offset in the DVSEC capability: the vendor (PCIe 7.9.6.2).
pub const DVSEC_VENDOR: u16 = 4;
/// A [`DVSEC_VENDOR`]: the CXL Consortium (CXL 3.1, 8.1.1).
pub const CXL_VENDOR: u16 = 0x1e98;
