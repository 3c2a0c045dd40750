//! Target `lies`: a device with malformed config space, regions and interrupts, whose calls fail.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use vfio_passthrough::ByteRange;
use vfio_passthrough::backend::{
    BusMember, Device, DeviceFlags, IrqFlags, IrqInfo, RegionFlags, RegionInfo, RegionMmap, SetIrqs,
};
use vfio_passthrough::model::{Faults, PciDevice};
use vfio_passthrough::pci::presence::{header, power_control};

use crate::input::Input;
use crate::oracle::Vm;

const CONFIG: u32 = 7;
/// The size of each region of the model that can be mapped.
const LARGEST: u64 = 1 << 40;

/// A device that maps regions as the model does, and takes all else from the input.
struct LyingDevice {
    model: Arc<PciDevice>,
    config: Mutex<Vec<u8>>,
    regions: Vec<RegionInfo>,
    irqs: [IrqInfo; 3],
    /// One bit for each call: 1 makes it fail. Each call rotates the bits.
    failures: AtomicU8,
}

impl LyingDevice {
    fn next_result(&self) -> io::Result<()> {
        let failures = self.failures.load(Ordering::Relaxed);
        self.failures.store(failures.rotate_right(1), Ordering::Relaxed);
        match failures & 1 {
            0 => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }
}

impl Device for LyingDevice {
    fn flags(&self) -> DeviceFlags {
        DeviceFlags::PCI | DeviceFlags::RESET
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.regions
            .get(index as usize)
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        match self.irqs.get(index as usize) {
            Some(irq) => Ok(*irq),
            None => self.model.irq(index),
        }
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if region.index != CONFIG {
            return self.next_result();
        }
        let (at, config) = (usize::try_from(offset).unwrap(), self.config.lock().unwrap());
        data.iter_mut()
            .enumerate()
            .for_each(|(index, byte)| *byte = config.get(at + index).copied().unwrap_or(0));
        Ok(())
    }

    /// Only the power state changes: without that, a device that sleeps could not be assigned.
    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        self.next_result()?;
        let mut config = self.config.lock().unwrap();
        let control = power_control(&config).filter(|_| region.index == CONFIG);
        if let Some((control, _)) = control.filter(|(control, _)| u64::from(*control) == offset) {
            config[usize::from(control)] = data[0];
        }
        Ok(())
    }

    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap> {
        self.model.clone().mmap(region, range)
    }

    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        match call {
            // Error and request interrupts succeed, or the function could not be built.
            SetIrqs::Trigger { index: 3.., .. } | SetIrqs::Disable { index: 3.. } => {
                self.model.set_irqs(call)
            }
            _ => self.next_result(),
        }
    }

    fn reset(&self) -> io::Result<()> {
        self.next_result()
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        Err(io::Error::from_raw_os_error(libc::ENODEV))
    }

    fn reset_bus(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }

    fn close(&self) {
        self.model.close();
    }
}

fn region(index: u32, input: &mut Input<'_>) -> RegionInfo {
    let kind = input.u8();
    let odd = u64::from(input.u16());
    // Most sizes are powers of two. Some are huge, and some are not valid for a BAR.
    let size = match kind & 3 {
        0 => 0,
        1 => odd,
        2 => 1 << (odd & 63),
        _ => 0x1000 << (odd & 7),
    };
    let area = |input: &mut Input<'_>| {
        let (start, size) = (u64::from(input.u16()) << 9, u64::from(input.u16()) << 9);
        ByteRange::between(start, start + size)
    };
    let sparse = (kind & 0x40 != 0).then(|| (0..kind >> 4 & 3).map(|_| area(input)).collect());
    RegionInfo {
        index,
        flags: RegionFlags::from_bits_retain(u32::from(!kind >> 2 & 7)),
        size,
        file_offset: u64::from(index) << 40,
        sparse,
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let faults = Arc::new(Faults::default());
    let mut config = vec![0; if input.u8() & 1 == 0 { 0x1000 } else { 0x100 }];
    // The default is a type 0 header with a capability list, and an extended list whose second
    // capability is where the input writes; the input may overwrite the header.
    config[..4].copy_from_slice(&[0x36, 0x1b, 0x10, 0x00]);
    config[0x06] = 0x10;
    config[0x34] = 0x40;
    if let Some(extended) = config.get_mut(0x100..0x104) {
        extended.copy_from_slice(&0x8001_000b_u32.to_le_bytes());
    }
    for _ in 0..input.u8() & 0x3f {
        let (at, run) = (usize::from(input.u16() & 0xfff), input.bytes::<4>());
        let at = if at & 0x800 == 0 { at & 0xff } else { at };
        config.iter_mut().skip(at).zip(run).for_each(|(byte, value)| *byte = value);
    }
    // A device that does not respond is refused after a second; tests of the library cover that.
    if header(&config).is_err() {
        config[..12].fill(0);
        config[0x06] = 0x10;
    }
    let mut regions: Vec<_> = (0..CONFIG).map(|index| region(index, &mut input)).collect();
    regions.push(RegionInfo {
        index: CONFIG,
        flags: RegionFlags::READ | RegionFlags::WRITE,
        size: config.len() as u64,
        ..RegionInfo::default()
    });
    let irqs = [0, 1, 2].map(|index| IrqInfo {
        index,
        flags: IrqFlags::from_bits_retain(u32::from(input.u8() & 0xf)),
        count: u32::from(input.u16()),
    });
    let model = PciDevice::new(faults.clone(), vec![0; 0x1000], &[LARGEST; 7], vec![]);
    let model = Arc::new(model.unwrap());
    let failures = AtomicU8::new(input.u8());
    let device =
        Arc::new(LyingDevice { model, config: Mutex::new(config), regions, irqs, failures });
    let Some(vm) = Vm::new(faults, device.clone()) else {
        return;
    };
    vm.check();
    while !input.is_empty() {
        vm.access(&mut input);
        vm.check();
    }
    device.failures.store(0, Ordering::Relaxed);
    vm.check_idempotence();
    vm.end();
}
