//! Tests of the function layer on the model: the effects of a guest's accesses on the host, and the
//! state after failures.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "a test that fails panics")]

use std::io;
use std::sync::{Arc, Mutex};

use vfio_passthrough::backend::{Device as _, IrqFlags};
use vfio_passthrough::function::Error;
use vfio_passthrough::host::{IntxConnection, IntxLine, MsiMessage};
use vfio_passthrough::model::{Call, Faults, Guest, PciDevice};
use vfio_passthrough::{BarIndex, ByteRange, PassthroughFunction, ResetPolicy, Space, VmmServices};

const GPA: u64 = 0x38_0000_0000;
const MSIX_CONTROL: u16 = 0x42;
const PM_CONTROL: u16 = 0x64;
const EXPRESS_CONTROL: u16 = 0x88;
const TABLE: u64 = 0x2000;
const PBA: u64 = 0x3000;
const INTX: u32 = 0;
const MSIX: u32 = 2;

struct Setup {
    faults: Arc<Faults>,
    device: Arc<PciDevice>,
    guest: Guest,
    function: PassthroughFunction,
}

fn assign(device: Arc<PciDevice>, guest: &Guest) -> Result<PassthroughFunction, Error> {
    let address = "01:00.0".parse().unwrap();
    PassthroughFunction::new(address, device, &guest.services(), ResetPolicy::Required)
}

fn setup_with(flags: IrqFlags) -> Setup {
    let faults = Arc::new(Faults::default());
    let device = Arc::new(PciDevice::nvme(faults.clone(), flags).unwrap());
    let guest = Guest::new(faults.clone());
    let function = assign(device.clone(), &guest).unwrap();
    Setup { faults, device, guest, function }
}

fn setup() -> Setup {
    setup_with(IrqFlags::EVENTFD)
}

fn bar0() -> BarIndex {
    BarIndex::new(0).unwrap()
}

impl Setup {
    fn write(&self, offset: u16, value: u16) {
        let _ = self.function.config_write(offset, &value.to_le_bytes());
    }

    fn place(&self, gpa: u64) {
        let _ = self.function.config_write(0x10, &(gpa as u32).to_le_bytes());
        let _ = self.function.config_write(0x14, &((gpa >> 32) as u32).to_le_bytes());
    }

    fn start(self) -> Self {
        self.place(GPA);
        self.write(0x04, 0x0406);
        self
    }

    fn real_command(&self) -> u16 {
        let mut data = [0; 2];
        self.device.config(4, &mut data).unwrap();
        u16::from_le_bytes(data)
    }

    fn program(&self, vector: u64, data: u32, masked: bool) {
        let entry = TABLE + vector * 16;
        self.function.bar_write(bar0(), entry, &0xfee0_0000_u64.to_le_bytes());
        self.function.bar_write(bar0(), entry + 8, &data.to_le_bytes());
        self.function.bar_write(bar0(), entry + 12, &u32::from(masked).to_le_bytes());
    }

    fn pending(&self) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(bar0(), PBA, &mut data);
        u64::from_le_bytes(data)
    }
}

fn direct_at(gpa: u64) -> Vec<ByteRange> {
    vec![ByteRange::new(gpa, 0x2000).unwrap()]
}

fn message(data: u32) -> MsiMessage {
    MsiMessage { address: 0xfee0_0000, data }
}

#[test]
fn places_a_bar_while_it_decodes_except_for_the_pages_of_msix() {
    let setup = setup();
    setup.place(GPA);
    assert!(setup.guest.slots().is_empty(), "decoding is off");
    setup.write(0x04, 0x0006);
    assert_eq!(setup.guest.slots(), direct_at(GPA));
    assert_eq!(setup.real_command(), 0x0006);
    assert_eq!(setup.function.decode(Space::Memory, GPA + TABLE), Some((bar0(), TABLE)));
    assert_eq!(setup.function.decode(Space::Memory, GPA + 0x4000), None);
    setup.write(0x04, 0);
    assert!(setup.guest.slots().is_empty());
    assert_eq!(setup.function.decode(Space::Memory, GPA), None);
}

#[test]
fn moves_a_bar_with_its_register() {
    let setup = setup().start();
    setup.place(GPA + 0x10_0000);
    assert_eq!(setup.guest.slots(), direct_at(GPA + 0x10_0000));
}

#[test]
fn traps_a_bar_whose_slot_is_refused_until_it_moves() {
    let setup = setup();
    setup.faults.fail(Call::PlaceSlot, 0, libc::EEXIST);
    let setup = setup.start();
    assert!(setup.guest.slots().is_empty());
    setup.function.bar_write(bar0(), 0x10, &[7]);
    let mut data = [0];
    setup.function.bar_read(bar0(), 0x10, &mut data);
    assert_eq!(data, [7], "through the device");
    setup.place(GPA + 0x10_0000);
    assert_eq!(setup.guest.slots(), direct_at(GPA + 0x10_0000));
}

#[test]
fn removes_a_bar_in_d3_and_places_it_in_d0() {
    let setup = setup().start();
    setup.write(PM_CONTROL, 3);
    assert!(setup.guest.slots().is_empty());
    setup.write(PM_CONTROL, 0);
    assert_eq!(setup.guest.slots(), direct_at(GPA));
}

#[test]
fn binds_vectors_when_the_guest_unmasks_them() {
    let setup = setup().start();
    setup.write(MSIX_CONTROL, 0x8000);
    assert_eq!((setup.device.irqs().active, setup.device.irqs().bound.len()), (Some(MSIX), 0));
    setup.program(2, 7, false);
    assert_eq!(setup.device.irqs().bound.len(), 1);
    assert_eq!(setup.guest.delivered().into_iter().collect::<Vec<_>>(), [(2, message(7))]);
    setup.write(MSIX_CONTROL, 0);
    assert_ne!(setup.device.irqs().active, Some(MSIX));
    assert!(setup.guest.delivered().is_empty());
}

#[test]
fn binds_all_vectors_in_one_call_without_resizing() {
    let setup = setup_with(IrqFlags::EVENTFD | IrqFlags::NORESIZE).start();
    let before = setup.faults.made(Call::SetIrqs);
    setup.write(MSIX_CONTROL, 0x8000);
    assert_eq!(setup.device.irqs().bound.len(), 65);
    (0..65).for_each(|vector| setup.program(vector, 7, false));
    assert_eq!(setup.faults.made(Call::SetIrqs) - before, 2, "INTx off, all vectors on");
    assert_eq!(setup.guest.delivered().len(), 65);
}

#[test]
fn a_masked_vector_that_fires_is_pending_until_it_is_unmasked() {
    let setup = setup().start();
    setup.write(MSIX_CONTROL, 0x8000);
    setup.program(1, 7, false);
    setup.program(1, 7, true);
    assert_eq!(setup.pending(), 0);
    setup.device.raise(1).unwrap();
    assert_eq!(setup.pending(), 0b10);
    setup.program(1, 7, false);
    assert_eq!(setup.pending(), 0);
}

#[test]
fn retries_a_failed_binding_at_the_next_change() {
    let setup = setup().start();
    setup.write(MSIX_CONTROL, 0x8000);
    setup.faults.fail(Call::SetIrqs, 0, libc::EBUSY);
    setup.program(0, 7, false);
    assert_eq!(setup.device.irqs().bound.len(), 0);
    setup.program(1, 8, false);
    assert_eq!(setup.device.irqs().bound.len(), 2);
}

#[test]
fn a_function_level_reset_restores_the_power_on_state() {
    let setup = setup().start();
    setup.write(MSIX_CONTROL, 0x8000);
    setup.program(0, 7, false);
    setup.write(EXPRESS_CONTROL, 0x8000);
    assert_eq!(setup.faults.made(Call::Reset), 1);
    assert!(setup.guest.slots().is_empty() && setup.guest.delivered().is_empty());
    assert_ne!(setup.device.irqs().active, Some(MSIX));
    assert_eq!(setup.real_command(), 0);
}

#[test]
fn answers_nothing_and_holds_nothing_after_shutdown() {
    let setup = setup().start();
    setup.write(MSIX_CONTROL, 0x8000);
    setup.program(0, 7, false);
    setup.function.shutdown().unwrap();
    let mut data = [0; 4];
    setup.function.config_read(0, &mut data);
    assert_eq!(data, [0xff; 4]);
    setup.write(0x04, 0x0006);
    assert_eq!(setup.real_command(), 0, "no bus mastering");
    assert!(setup.guest.slots().is_empty() && setup.device.irqs().active.is_none());
    setup.function.shutdown().unwrap();
    assert_eq!(setup.faults.made(Call::Reset), 1, "once");
}

/// Firmware can make devices report errors to the host by SERR# (PCIe 6.2.6). The guest has its own
/// copy of that bit.
#[test]
fn keeps_the_hosts_setting_of_serr() {
    for (host, real) in [(0x0103_u16, 0x0100), (0x0003, 0)] {
        let faults = Arc::new(Faults::default());
        let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
        let config = device.region(7).unwrap();
        device.write(&config, 4, &host.to_le_bytes()).unwrap();
        let guest = Guest::new(faults.clone());
        let function = assign(device.clone(), &guest).unwrap();
        let setup = Setup { faults, device, guest, function };
        let command = || {
            let mut data = [0; 2];
            setup.function.config_read(4, &mut data);
            u16::from_le_bytes(data)
        };
        assert_eq!(command(), 0);
        setup.write(0x04, 0x0006);
        assert_eq!((command(), setup.real_command()), (0x0006, 0x0006 | real));
        setup.write(0x04, 0x0106);
        assert_eq!((command(), setup.real_command()), (0x0106, 0x0106));
        setup.write(0x04, 0x0002);
        assert_eq!((command(), setup.real_command()), (0x0002, 0x0002 | real));
        setup.function.shutdown().unwrap();
    }
}

#[test]
fn reports_a_failed_reset_and_completes_the_shutdown() {
    let setup = setup().start();
    setup.faults.fail(Call::Reset, 0, libc::ENOTTY);
    let error = setup.function.shutdown().unwrap_err().to_string();
    assert!(error.starts_with("0000:01:00.0: VFIO_DEVICE_RESET: "), "{error}");
    assert!(setup.guest.slots().is_empty());
    assert_eq!(setup.real_command(), 0);
}

#[test]
fn failed_reads_return_all_ones() {
    let setup = setup().start();
    setup.faults.fail(Call::Read, 0, libc::EIO);
    setup.faults.fail(Call::Read, 1, libc::EIO);
    let (mut status, mut register) = ([0; 2], [0; 4]);
    setup.function.config_read(6, &mut status);
    setup.function.bar_read(bar0(), 0, &mut register);
    assert_eq!((status, register), ([0xff; 2], [0xff; 4]));
}

#[test]
fn reads_of_emulated_registers_do_not_reach_the_device() {
    let setup = setup().start();
    let before = setup.faults.made(Call::Read);
    for offset in [0x00, 0x08, 0x10, 0x34, 0x3c, 0x40] {
        setup.function.config_read(offset, &mut [0; 4]);
    }
    assert_eq!(setup.faults.made(Call::Read), before);
    setup.function.config_read(0x84, &mut [0; 4]);
    assert_eq!(setup.faults.made(Call::Read), before + 1);
}

#[test]
fn a_failed_attach_names_the_device_and_holds_nothing() {
    for call in [Call::RegionInfo, Call::IrqInfo, Call::Read] {
        let faults = Arc::new(Faults::default());
        let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
        let guest = Guest::new(faults.clone());
        faults.fail(call, 0, libc::ENODEV);
        let error = assign(device.clone(), &guest).err().unwrap();
        let text = error.to_string();
        assert!(
            text.starts_with("0000:01:00.0: ") && text.contains("os error 19"),
            "{call:?}: {text}"
        );
        assert_eq!(Arc::strong_count(&device), 1, "{call:?}");
    }
}

#[test]
fn connects_the_pin_while_the_function_decodes_and_has_no_messages() {
    let setup = setup();
    assert_eq!((setup.device.irqs().active, setup.guest.pins()), (None, 0));
    let setup = setup.start();
    assert_eq!((setup.device.irqs().active, setup.guest.pins()), (Some(INTX), 1));
    assert!(setup.device.irqs().unmasks);
    setup.write(MSIX_CONTROL, 0x8000);
    assert_eq!((setup.device.irqs().active, setup.guest.pins()), (Some(MSIX), 0));
    setup.write(MSIX_CONTROL, 0);
    assert_eq!((setup.device.irqs().active, setup.guest.pins()), (Some(INTX), 1));
    setup.write(0x04, 0);
    assert_eq!((setup.device.irqs().active, setup.guest.pins()), (None, 0));
}

#[test]
fn unbinds_a_pin_that_cannot_be_unmasked() {
    let setup = setup();
    setup.faults.fail(Call::SetIrqs, 1, libc::EINVAL);
    let setup = setup.start();
    assert_eq!((setup.device.irqs().active, setup.guest.pins()), (None, 0));
}

#[test]
fn repeats_a_command_write_that_failed() {
    let setup = setup();
    setup.place(GPA);
    setup.faults.fail(Call::Write, 0, libc::EIO);
    setup.write(0x04, 0x0006);
    // The host's kernel had enabled the device with 3.
    assert_eq!((setup.real_command(), setup.guest.slots()), (3, vec![]));
    setup.write(0x04, 0x0006);
    assert_eq!((setup.real_command(), setup.guest.slots()), (6, direct_at(GPA)));
}

#[test]
fn retries_a_failed_binding_when_the_entry_is_written_again() {
    let setup = setup().start();
    setup.write(MSIX_CONTROL, 0x8000);
    setup.faults.fail(Call::SetIrqs, 0, libc::EBUSY);
    setup.program(0, 7, false);
    setup.program(0, 7, false);
    assert_eq!(setup.device.irqs().bound.len(), 1);
}

#[test]
fn binds_a_pin_again_after_its_unbinding_failed() {
    let setup = setup();
    setup.faults.fail(Call::SetIrqs, 1, libc::EINVAL);
    setup.faults.fail(Call::SetIrqs, 2, libc::EINVAL);
    let setup = setup.start();
    assert!(!setup.device.irqs().unmasks);
    setup.write(0x04, 0x0406);
    assert!(setup.device.irqs().unmasks);
    assert_eq!(setup.guest.pins(), 1);
}

#[test]
fn the_multifunction_bit_is_shown_if_the_vmm_asks_for_it() {
    let header_type = |function: &PassthroughFunction| {
        let mut data = [0];
        function.config_read(0x0e, &mut data);
        data
    };
    let setup = setup();
    assert_eq!(header_type(&setup.function), [0]);
    let one_of_several =
        assign(setup.device, &Guest::new(setup.faults)).unwrap().with_multifunction();
    assert_eq!(header_type(&one_of_several), [0x80]);
    let _ = one_of_several.config_write(0x0e, &[0]);
    one_of_several.reset().1.unwrap();
    assert_eq!(header_type(&one_of_several), [0x80], "after a write and a reset");
}

/// The lines of a guest, and the pins that were connected.
struct Lines(Guest, Mutex<Vec<u8>>);

impl IntxLine for Lines {
    fn connect(&self, pin: u8) -> io::Result<Box<dyn IntxConnection>> {
        self.1.lock().unwrap().push(pin);
        self.0.connect(pin)
    }
}

#[test]
fn connects_the_pin_that_the_guest_sees() {
    let faults = Arc::new(Faults::default());
    let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
    let guest = Guest::new(faults.clone());
    let lines = Arc::new(Lines(guest.clone(), Mutex::default()));
    let services = VmmServices { intx: Some(lines.clone()), ..guest.services() };
    let address = "01:00.0".parse().unwrap();
    let function =
        PassthroughFunction::new(address, device.clone(), &services, ResetPolicy::Required)
            .unwrap();
    let setup = Setup { faults, device, guest, function }.start();
    let mut pin = [0];
    setup.function.config_read(0x3d, &mut pin);
    assert_eq!((pin, lines.1.lock().unwrap().as_slice()), ([1], [1].as_slice()), "INTA#");
}
