//! A device that lies: of its config space, its regions, its interrupts, and in what it answers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vfio_passthrough::ByteRange;
use vfio_passthrough::backend::{
    BusMember, Device, DeviceFlags, IrqFlags, IrqInfo, RegionFlags, RegionInfo, RegionMmap, SetIrqs,
};
use vfio_passthrough::model::{Faults, PciDevice};

use crate::input::Input;
use crate::oracle::Vm;

const CONFIG: u32 = 7;

/// It maps as a device of the model does, and says what it likes.
struct Liar {
    honest: Arc<PciDevice>,
    config: Vec<u8>,
    regions: Vec<RegionInfo>,
    irqs: [IrqInfo; 3],
    /// Turned a bit by each answer.
    mood: AtomicU8,
}

impl Liar {
    fn refuses(&self) -> io::Result<()> {
        let mood = self.mood.load(Ordering::Relaxed);
        self.mood.store(mood.rotate_right(1), Ordering::Relaxed);
        match mood & 1 {
            0 => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }
}

impl Device for Liar {
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
            None => self.honest.irq(index),
        }
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if region.index != CONFIG {
            return self.refuses();
        }
        let at = usize::try_from(offset).unwrap();
        data.iter_mut()
            .enumerate()
            .for_each(|(index, byte)| *byte = self.config.get(at + index).copied().unwrap_or(0));
        Ok(())
    }

    fn write(&self, _: &RegionInfo, _: u64, _: &[u8]) -> io::Result<()> {
        self.refuses()
    }

    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap> {
        self.honest.clone().mmap(region, range)
    }

    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        match call {
            // What the host tells of it is heard, or there would be no function.
            SetIrqs::Trigger { index: 3.., .. } | SetIrqs::Disable { index: 3.. } => {
                self.honest.set_irqs(call)
            }
            _ => self.refuses(),
        }
    }

    fn reset(&self) -> io::Result<()> {
        self.refuses()
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        Err(io::Error::from_raw_os_error(libc::ENODEV))
    }

    fn reset_bus(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }

    fn close(&self) {
        self.honest.close();
    }
}

fn region(index: u32, input: &mut Input<'_>) -> RegionInfo {
    let kind = input.u8();
    let odd = u64::from(input.u16());
    // Most are powers of two; some are huge, some are nothing that can be.
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
        file_offset: u64::from(index) << 36,
        sparse,
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let faults = Arc::new(Faults::default());
    let mut config = vec![0; if input.u8() & 1 == 0 { 0x1000 } else { 0x100 }];
    // Type 0 and a list of capabilities, unless the input has it otherwise.
    config[0x06] = 0x10;
    config[0x34] = 0x40;
    for _ in 0..input.u8() & 0x3f {
        let (at, run) = (usize::from(input.u16() & 0xfff), input.bytes::<4>());
        let at = if at & 0x800 == 0 { at & 0xff } else { at };
        config.iter_mut().skip(at).zip(run).for_each(|(byte, value)| *byte = value);
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
    let honest = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
    let mood = AtomicU8::new(input.u8());
    let device = Arc::new(Liar { honest, config, regions, irqs, mood });
    let Some(vm) = Vm::new(faults, device.clone()) else {
        return;
    };
    vm.check();
    while !input.is_empty() {
        vm.access(&mut input);
        vm.check();
    }
    device.mood.store(0, Ordering::Relaxed);
    vm.check_settled();
    vm.end();
}
