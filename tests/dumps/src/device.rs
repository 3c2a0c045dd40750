//! A function of a dump as a device of the model, with what vfio-pci would report of it. A dump
//! without the sizes of BARs gets sizes for which each address in it is possible.

use std::io;
use std::sync::Arc;

use vfio_passthrough::backend::{IrqFlags, IrqInfo, RegionFlags};
use vfio_passthrough::model::{Faults, PciDevice};

use crate::dump::Function;
use crate::lists::{find, u8_at, u16_at, u32_at};

const POWER: u16 = 0x01;
const MSI: u16 = 0x05;
const EXPRESS: u16 = 0x10;
const MSIX: u16 = 0x11;
const ADVANCED: u16 = 0x13;

/// The sizes of BARs and ROMs that a dump does not tell, if their addresses allow them.
const PORTS: u64 = 0x20;
const MEMORY: u64 = 0x4000;
const ROM: u64 = 0x1_0000;

/// Makes the device.
pub fn of(function: &Function, faults: Arc<Faults>) -> io::Result<PciDevice> {
    let config = &function.config;
    let device = PciDevice::new(faults, config.clone(), &sizes(function), irqs(config))?;
    // vfio-pci maps no ports.
    let ports = (0..6).filter(|bar| u32_at(config, register(*bar)) & 1 != 0);
    let device = ports.fold(device, |device, bar| {
        let index = u32::try_from(bar).unwrap_or(0);
        device.with_region(index, |region| region.flags.remove(RegionFlags::MMAP))
    });
    Ok(if resets(config) { device } else { device.without_reset(Vec::new()) })
}

/// The offset of a BAR's register.
pub fn register(bar: usize) -> usize {
    0x10 + 4 * bar
}

/// Whether the kernel can reset the function alone: by FLR, or by the power state.
fn resets(config: &[u8]) -> bool {
    let has = |id, register, bit: u8| {
        find(config, id).is_some_and(|at| u8_at(config, at + register) & bit != 0)
    };
    let loses_state = |at: usize| u8_at(config, at + 4) & 1 << 3 == 0;
    has(EXPRESS, 7, 1 << 4)
        || has(ADVANCED, 3, 1 << 1)
        || find(config, POWER).is_some_and(loses_state)
}

fn irqs(config: &[u8]) -> Vec<IrqInfo> {
    let irq = |index, count| IrqInfo { index, count, flags: IrqFlags::EVENTFD };
    let control = |at: usize| u16_at(config, at + 2);
    let msi = find(config, MSI).map(|at| irq(1, 1 << (control(at) >> 1 & 7)));
    let msix = find(config, MSIX).map(|at| irq(2, u32::from(control(at) & 0x7ff) + 1));
    let pin = (u8_at(config, 0x3d) != 0).then(|| irq(0, 1));
    [pin, msi, msix].into_iter().flatten().collect()
}

/// The sizes of the regions.
fn sizes(function: &Function) -> [u64; 7] {
    let (mut sizes, config) = (function.sizes, &function.config);
    let mut upper = false;
    for (bar, size) in sizes.iter_mut().enumerate().take(6) {
        let value = u32_at(config, register(bar));
        if !upper && *size == 0 && value != 0 {
            *size = size_of(value).max(messages_end(config, bar));
        }
        upper = !upper && value & 0b111 == 0b100;
    }
    let rom = u32_at(config, 0x30);
    if sizes[6] == 0 && rom != 0 {
        sizes[6] = largest(rom & !0x7ff, ROM);
    }
    sizes
}

fn size_of(register: u32) -> u64 {
    if register & 1 != 0 { largest(register & !3, PORTS) } else { largest(register & !15, MEMORY) }
}

/// The largest size up to `most` of which the address is a multiple.
fn largest(address: u32, most: u64) -> u64 {
    if address == 0 { most } else { most.min(1 << address.trailing_zeros()) }
}

/// The end of what MSI-X has in a BAR, as a size of a BAR.
fn messages_end(config: &[u8], bar: usize) -> u64 {
    let Some(at) = find(config, MSIX) else { return 0 };
    let vectors = u64::from(u16_at(config, at + 2) & 0x7ff) + 1;
    let end = |offset: usize, size: u64| {
        let place = u32_at(config, at + offset);
        if place as usize & 7 == bar { u64::from(place & !7) + size } else { 0 }
    };
    let end = end(4, vectors * 16).max(end(8, vectors.div_ceil(64) * 8));
    if end == 0 { 0 } else { end.next_power_of_two() }
}
