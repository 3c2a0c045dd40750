//! The device tree, which describes the machine to the guest. Pure.
//!
//! Bindings: Documentation/devicetree/bindings of Linux (arm/cpus.yaml, arm/psci.yaml,
//! interrupt-controller/arm,gic-v3.yaml, timer/arm,arch_timer.yaml, serial/8250.yaml, gpio/pl061-gpio.yaml,
//! input/gpio-keys.yaml,
//! pci/host-generic-pci.yaml, pci/pci-msi.txt) and the Devicetree Specification.

use devices::GpioButton;
use resources::{AddressRange, Layout};
use vm_fdt::{FdtWriter, FdtWriterResult};

use super::super::places::{
    DISTRIBUTOR, GPIO, GPIO_GSI, ITS, PORTS, SERIAL, SERIAL_GSI, intx_gsi, redistributors,
};

/// Handles of nodes that others refer to.
const GIC: u32 = 1;
const MSI: u32 = 2;
const CLOCK: u32 = 3;
const GPIO_CONTROLLER: u32 = 4;
/// Kinds of an interrupt, and how it is triggered.
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE: u32 = 1;
const LEVEL: u32 = 4;
/// The PPIs of the timer: secure, physical, virtual, and the hypervisor's (Arm's BSA, 3.8.3, minus
/// 16).
const TIMERS: [u32; 4] = [13, 14, 11, 10];
/// The space code of a PCI address: ports, memory below 4 GiB, and any memory.
const IO_SPACE: u32 = 0x0100_0000;
const MEMORY32: u32 = 0x0200_0000;
const MEMORY64: u32 = 0x0300_0000;
/// The clock of a PC's 16550, which Linux divides.
const UART_CLOCK: u32 = 1_843_200;
/// The clock of the GPIO controller's bus. Nothing depends on it.
const BUS_CLOCK: u32 = 24_000_000;
/// linux/input-event-codes.h, dt-bindings/gpio/gpio.h.
const KEY_POWER: u32 = 116;
const ACTIVE_HIGH: u32 = 0;

/// What the tree describes.
pub(super) struct Tree<'a> {
    pub(super) layout: &'a Layout,
    pub(super) cpus: u8,
    pub(super) initrd: Option<AddressRange>,
    pub(super) cmdline: String,
}

type Written = FdtWriterResult<()>;

impl Tree<'_> {
    /// The flattened tree.
    pub(super) fn bytes(&self) -> FdtWriterResult<Vec<u8>> {
        let mut to = FdtWriter::new()?;
        let root = to.begin_node("")?;
        to.property_string("compatible", "vfio-passthrough,vmm")?;
        cells(&mut to, 2, 2)?;
        to.property_u32("interrupt-parent", GIC)?;
        self.chosen(&mut to)?;
        self.cpus(&mut to)?;
        self.memory(&mut to)?;
        timer(&mut to)?;
        self.gic(&mut to)?;
        serial(&mut to)?;
        button(&mut to)?;
        self.pci(&mut to)?;
        to.end_node(root)?;
        to.finish()
    }

    fn chosen(&self, to: &mut FdtWriter) -> Written {
        let node = to.begin_node("chosen")?;
        to.property_string("bootargs", &self.cmdline)?;
        // The guest keeps the places of BARs, which are apart by pages of the host.
        to.property_u32("linux,pci-probe-only", 1)?;
        to.property_string("stdout-path", &format!("/serial@{:x}", SERIAL.start))?;
        if let Some(initrd) = self.initrd {
            to.property_u64("linux,initrd-start", initrd.start)?;
            to.property_u64("linux,initrd-end", initrd.end())?;
        }
        to.end_node(node)
    }

    fn cpus(&self, to: &mut FdtWriter) -> Written {
        let node = to.begin_node("cpus")?;
        cells(to, 1, 0)?;
        (0..self.cpus).try_for_each(|index| cpu(to, index))?;
        to.end_node(node)?;
        let node = to.begin_node("psci")?;
        to.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
        to.property_string("method", "hvc")?;
        to.end_node(node)
    }

    fn memory(&self, to: &mut FdtWriter) -> Written {
        self.layout.ram.iter().try_for_each(|range| {
            let node = to.begin_node(&format!("memory@{:x}", range.start))?;
            to.property_string("device_type", "memory")?;
            reg(to, &[*range])?;
            to.end_node(node)
        })
    }

    fn gic(&self, to: &mut FdtWriter) -> Written {
        let node = to.begin_node(&format!("interrupt-controller@{:x}", DISTRIBUTOR.start))?;
        to.property_string("compatible", "arm,gic-v3")?;
        to.property_null("interrupt-controller")?;
        to.property_u32("#interrupt-cells", 3)?;
        to.property_phandle(GIC)?;
        cells(to, 2, 2)?;
        to.property_null("ranges")?;
        reg(to, &[DISTRIBUTOR, redistributors(self.cpus)])?;
        let its = to.begin_node(&format!("msi-controller@{:x}", ITS.start))?;
        to.property_string("compatible", "arm,gic-v3-its")?;
        to.property_null("msi-controller")?;
        to.property_u32("#msi-cells", 1)?;
        to.property_phandle(MSI)?;
        reg(to, &[ITS])?;
        to.end_node(its)?;
        to.end_node(node)
    }

    fn pci(&self, to: &mut FdtWriter) -> Written {
        let node = to.begin_node(&format!("pcie@{:x}", self.layout.ecam.start))?;
        to.property_string("compatible", "pci-host-ecam-generic")?;
        to.property_string("device_type", "pci")?;
        cells(to, 3, 2)?;
        to.property_array_u32("bus-range", &[0, 0])?;
        to.property_null("dma-coherent")?;
        reg(to, &[self.layout.ecam])?;
        to.property_array_u32("ranges", &self.windows())?;
        // The request IDs of bus 0 are the ITS's device IDs.
        to.property_array_u32("msi-map", &[0, MSI, 0, 0x100])?;
        to.property_u32("#interrupt-cells", 1)?;
        to.property_array_u32("interrupt-map-mask", &[0xf800, 0, 0, 7])?;
        to.property_array_u32("interrupt-map", &interrupt_map())?;
        to.end_node(node)
    }

    /// The windows: space, PCI address, address, size.
    fn windows(&self) -> Vec<u32> {
        let ports = AddressRange::new(
            PORTS.start.saturating_add(self.layout.io.start),
            self.layout.io.size,
        );
        let windows = [
            (IO_SPACE, self.layout.io.start, ports),
            (MEMORY32, self.layout.mmio32.start, self.layout.mmio32),
            (MEMORY64, self.layout.mmio64.start, self.layout.mmio64),
        ];
        let windows = windows.into_iter().filter(|(_, _, range)| !range.is_empty());
        let window = |(space, bus, range): (u32, u64, AddressRange)| {
            [vec![space], [bus, range.start, range.size].map(halves).concat()].concat()
        };
        windows.flat_map(window).collect()
    }
}

/// The upper and the lower 32 bits.
fn halves(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}

fn cells(to: &mut FdtWriter, address: u32, size: u32) -> Written {
    to.property_u32("#address-cells", address)?;
    to.property_u32("#size-cells", size)
}

fn reg(to: &mut FdtWriter, ranges: &[AddressRange]) -> Written {
    let pairs: Vec<_> = ranges.iter().flat_map(|range| [range.start, range.size]).collect();
    to.property_array_u64("reg", &pairs)
}

/// The affinity of a CPU, as KVM makes it of the CPU's number: 16 CPUs have one affinity 1, since
/// an SGI reaches 16 (kvm's `reset_mpidr`).
fn affinity(index: u8) -> u32 {
    u32::from(index & 0xf) | u32::from(index >> 4) << 8
}

fn cpu(to: &mut FdtWriter, index: u8) -> Written {
    let affinity = affinity(index);
    let node = to.begin_node(&format!("cpu@{affinity:x}"))?;
    to.property_string("device_type", "cpu")?;
    to.property_string("compatible", "arm,armv8")?;
    to.property_string("enable-method", "psci")?;
    to.property_u32("reg", affinity)?;
    to.end_node(node)
}

fn timer(to: &mut FdtWriter) -> Written {
    let node = to.begin_node("timer")?;
    to.property_string("compatible", "arm,armv8-timer")?;
    to.property_array_u32("interrupts", TIMERS.map(|ppi| [PPI, ppi, LEVEL]).as_flattened())?;
    to.property_null("always-on")?;
    to.end_node(node)
}

fn serial(to: &mut FdtWriter) -> Written {
    let node = to.begin_node(&format!("serial@{:x}", SERIAL.start))?;
    to.property_string("compatible", "ns16550a")?;
    reg(to, &[SERIAL])?;
    to.property_u32("clock-frequency", UART_CLOCK)?;
    to.property_array_u32("interrupts", &[SPI, SERIAL_GSI, EDGE])?;
    to.end_node(node)
}

/// The power button on a GPIO controller, which needs a clock by its binding.
fn button(to: &mut FdtWriter) -> Written {
    let clock = to.begin_node("clock")?;
    to.property_string("compatible", "fixed-clock")?;
    to.property_u32("#clock-cells", 0)?;
    to.property_u32("clock-frequency", BUS_CLOCK)?;
    to.property_phandle(CLOCK)?;
    to.end_node(clock)?;
    gpio(to)?;
    let keys = to.begin_node("gpio-keys")?;
    to.property_string("compatible", "gpio-keys")?;
    let key = to.begin_node("power")?;
    to.property_string("label", "Power Button")?;
    to.property_u32("linux,code", KEY_POWER)?;
    to.property_array_u32("gpios", &[GPIO_CONTROLLER, GpioButton::LINE.into(), ACTIVE_HIGH])?;
    to.end_node(key)?;
    to.end_node(keys)
}

fn gpio(to: &mut FdtWriter) -> Written {
    let node = to.begin_node(&format!("gpio@{:x}", GPIO.start))?;
    to.property_string_list("compatible", vec!["arm,pl061".into(), "arm,primecell".into()])?;
    reg(to, &[GPIO])?;
    to.property_array_u32("interrupts", &[SPI, GPIO_GSI, EDGE])?;
    to.property_null("gpio-controller")?;
    to.property_u32("#gpio-cells", 2)?;
    to.property_null("interrupt-controller")?;
    to.property_u32("#interrupt-cells", 2)?;
    to.property_u32("clocks", CLOCK)?;
    to.property_string("clock-names", "apb_pclk")?;
    to.property_phandle(GPIO_CONTROLLER)?;
    to.end_node(node)
}

/// For each slot and pin: the function's address, the pin from 1 on, and the SPI of the GIC, whose
/// own address has two cells.
fn interrupt_map() -> Vec<u32> {
    let pins = (0..32_u8).flat_map(|slot| (0..4_u8).map(move |pin| (slot, pin)));
    let entry = |(slot, pin): (u8, u8)| {
        let from = [u32::from(slot) << 11, 0, 0, u32::from(pin).saturating_add(1)];
        [&from[..], &[GIC, 0, 0, SPI, intx_gsi(slot, pin), LEVEL]].concat()
    };
    pins.flat_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::layout::fixture::layout;

    fn tree(layout: &Layout, cpus: u8, initrd: Option<AddressRange>) -> Vec<u8> {
        Tree { layout, cpus, initrd, cmdline: "console=ttyS0".into() }.bytes().unwrap()
    }

    fn contains(tree: &[u8], part: &[u8]) -> bool {
        tree.windows(part.len()).any(|found| found == part)
    }

    #[test]
    fn has_each_cpu_once_and_the_affinity_that_kvm_gives_it() {
        let affinities: Vec<_> = (0..18).map(affinity).collect();
        assert_eq!(affinities[..16], (0..16).collect::<Vec<_>>());
        assert_eq!(affinities[16..], [0x100, 0x101]);
        let tree = tree(&layout("1G", &[]), 17, None);
        assert!(contains(&tree, b"cpu@f\0") && contains(&tree, b"cpu@100\0"));
        assert!(!contains(&tree, b"cpu@101\0"));
    }

    #[test]
    fn maps_each_pin_of_each_slot_to_its_spi() {
        let map = interrupt_map();
        assert_eq!(map.len(), 32 * 4 * 10);
        let entries: Vec<_> = map.chunks_exact(10).collect();
        for (slot, pin) in [(0, 0), (3, 1), (31, 3)] {
            let entry = entries[usize::from(slot * 4 + pin)];
            let expected = [u32::from(slot) << 11, 0, 0, u32::from(pin) + 1, GIC, 0, 0, SPI];
            assert_eq!(entry[..8], expected);
            assert_eq!(entry[8..], [intx_gsi(slot, pin), LEVEL]);
        }
    }

    #[test]
    fn has_the_initramfs_only_if_there_is_one() {
        let layout = layout("1G", &[]);
        let initrd = Some(AddressRange::new(0x1234_5000, 0x1000));
        assert!(contains(&tree(&layout, 1, initrd), b"linux,initrd-start\0"));
        assert!(!contains(&tree(&layout, 1, None), b"linux,initrd-start\0"));
    }

    #[test]
    fn has_all_that_linux_needs_to_start() {
        let tree = tree(&layout("1G", &[]), 1, None);
        let magic = [0xd0, 0x0d, 0xfe, 0xed];
        assert!(tree.starts_with(&magic) && tree.len() < 64 << 10, "{}", tree.len());
        let parts = [
            "console=ttyS0",
            "/serial@c000000",
            "linux,pci-probe-only",
            "memory@40000000",
            "arm,psci-1.0",
            "hvc",
            "arm,armv8-timer",
            "arm,gic-v3",
            "arm,gic-v3-its",
            "ns16550a",
            "arm,pl061",
            "gpio-keys",
            "pci-host-ecam-generic",
            "msi-map",
            "interrupt-map",
        ];
        for part in parts {
            assert!(contains(&tree, &[part.as_bytes(), b"\0"].concat()), "{part}");
        }
    }

    #[test]
    fn has_the_windows_of_the_layout() {
        let layout = layout("1G", &[]);
        let windows =
            Tree { layout: &layout, cpus: 1, initrd: None, cmdline: String::new() }.windows();
        let starts: Vec<_> = windows.chunks_exact(7).map(|window| window[0]).collect();
        assert_eq!(starts, [IO_SPACE, MEMORY32, MEMORY64]);
        assert_eq!(u64::from(windows[7 + 2]), layout.mmio32.start);
    }
}
