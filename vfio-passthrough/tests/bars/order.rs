//! Tests of the order of calls: a BAR is removed from guest memory before the device stops decoding
//! it, and placed after the device starts. Otherwise the kernel removes mappings under a memory
//! slot, and the guest's next access kills the VMM.

use std::io;
use std::sync::Mutex;

use super::*;
use vfio_passthrough::backend::{
    BusMember, Device, DeviceFlags, IrqInfo, RegionInfo, RegionMmap, SetIrqs,
};

/// A call of the device, with the number of memory slots and the command register before it.
#[derive(Clone, Debug, PartialEq)]
struct Heard(String, usize, u16);

/// A device of the model that records its calls.
struct Witness {
    device: Arc<PciDevice>,
    guest: Guest,
    heard: Mutex<Vec<Heard>>,
}

impl Witness {
    fn hear(&self, what: String) {
        let mut command = [0; 2];
        self.device.config(COMMAND.into(), &mut command).unwrap();
        let heard = Heard(what, self.guest.slots().len(), u16::from_le_bytes(command));
        self.heard.lock().unwrap().push(heard);
    }

    fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.heard.lock().unwrap())
    }
}

impl Device for Witness {
    fn flags(&self) -> DeviceFlags {
        self.device.flags()
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.device.region(index)
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.device.irq(index)
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.device.read(region, offset, data)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        self.hear(format!("{offset:#x} = {data:x?}"));
        self.device.write(region, offset, data)
    }

    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap> {
        self.device.clone().mmap(region, range)
    }

    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        self.device.set_irqs(call)
    }

    fn reset(&self) -> io::Result<()> {
        self.hear("reset".to_owned());
        self.device.reset()
    }

    fn close(&self) {
        self.device.close();
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        self.device.bus_members()
    }

    fn reset_bus(&self) -> io::Result<()> {
        self.hear("reset of the bus".to_owned());
        self.device.reset_bus()
    }
}

/// A function whose BAR0 is placed, with decoding and bus mastering on. No call is recorded yet.
fn started(bus: Option<Vec<BusMember>>) -> (Arc<Witness>, PassthroughFunction) {
    let faults = Arc::new(Faults::default());
    let device = PciDevice::new(faults.clone(), config_of([0; 6], &[]), &[0x4000], vec![]).unwrap();
    let device = match bus {
        Some(bus) => device.without_reset(bus),
        None => device,
    };
    let witness = Arc::new(Witness {
        device: Arc::new(device),
        guest: Guest::new(faults),
        heard: Mutex::default(),
    });
    let (address, host) = ("01:00.0".parse().unwrap(), witness.guest.services());
    let function =
        PassthroughFunction::new(address, witness.clone(), &host, ResetPolicy::Required).unwrap();
    let _ = function.config_write(0x10, &0xe000_0000_u32.to_le_bytes());
    let _ = function.config_write(COMMAND, &[6, 0]);
    assert_eq!(witness.guest.slots().len(), 1);
    witness.take();
    (witness, function)
}

/// A write of the guest, and the device's call for it.
type Said<'a> = (&'a [u8], &'a str);

fn heard(what: &str, slots: usize, command: u16) -> Heard {
    Heard(what.to_owned(), slots, command)
}

#[test]
fn a_bar_is_placed_only_while_the_device_decodes_it() {
    // A register, the write that ends decoding, and the write that starts it again.
    let cases: [(u16, [Said<'_>; 2]); 3] = [
        (COMMAND, [(&[4, 0], "0x4 = [4, 0]"), (&[6, 0], "0x4 = [6, 0]")]),
        (COMMAND, [(&[0, 0], "0x4 = [0, 0]"), (&[2, 0], "0x4 = [2, 0]")]),
        (PM_CONTROL, [(&[3, 0], "0x44 = [3, 0]"), (&[0, 0], "0x44 = [0, 0]")]),
    ];
    for (register, [(off, heard_off), (on, heard_on)]) in cases {
        let (witness, function) = started(None);
        let _ = function.config_write(register, off);
        assert_eq!(witness.take(), [heard(heard_off, 0, 6)]);
        assert_eq!(witness.guest.slots().len(), 0);
        let command = if register == COMMAND { off[0].into() } else { 6 };
        let _ = function.config_write(register, on);
        assert_eq!(witness.take(), [heard(heard_on, 0, command)]);
        assert_eq!(witness.guest.slots().len(), 1, "after the write");
    }
}

#[test]
fn removes_bars_and_stops_bus_mastering_before_a_reset() {
    let quiet = [heard("0x4 = [0, 0]", 0, 6), heard("reset", 0, 0)];
    let (witness, function) = started(None);
    let _ = function.config_write(EXPRESS_CONTROL, &[0, 0x80]);
    assert_eq!(witness.take(), quiet, "FLR");
    let (witness, function) = started(None);
    function.reset().1.unwrap();
    assert_eq!(witness.take(), quiet, "reboot");
    let (witness, function) = started(None);
    function.shutdown().unwrap();
    assert_eq!(witness.take(), quiet, "detach");
    let (witness, function) = started(None);
    drop(function);
    assert_eq!(witness.take(), quiet, "dropped");
}

#[test]
fn removes_bars_and_stops_bus_mastering_before_a_bus_reset() {
    let own = BusMember {
        address: "01:00.0".parse().unwrap(),
        ours: true,
        driver: Some("vfio-pci".to_owned()),
    };
    let quiet = [heard("0x4 = [0, 0]", 0, 6), heard("reset of the bus", 0, 0)];
    let (witness, function) = started(Some(vec![own.clone()]));
    function.reset().1.unwrap();
    assert_eq!(witness.take(), quiet, "reboot");
    let (witness, function) = started(Some(vec![own]));
    function.shutdown().unwrap();
    assert_eq!(witness.take(), quiet, "detach");
}
