//! A PCI function in a guest, with the invariants that must hold after every access.

use std::sync::Arc;

use vfio_passthrough::backend::Device;
use vfio_passthrough::host::MemorySlot;
use vfio_passthrough::model::{Call, Faults, Guest};
use vfio_passthrough::pci::msix::MsixLayout;
use vfio_passthrough::{Bar, BarIndex, ByteRange, PassthroughFunction, ResetPolicy, Space};
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::input::Input;
use crate::shown::{self, read};

const PAGE: u64 = 0x1000;
/// The address of RAM. A guest that moves a BAR here must not replace RAM.
const RAM: u64 = 0x1000_0000;
const RAM_SIZE: u64 = 0x10_0000;

/// A guest with RAM and one function.
pub struct Vm {
    /// The failures to inject.
    pub faults: Arc<Faults>,
    /// The model of the guest: its memory slots and interrupts.
    pub guest: Guest,
    /// The function in the guest.
    pub function: Arc<PassthroughFunction>,
    msix: Option<MsixLayout>,
    ram: MemorySlot,
}

impl Vm {
    /// Assigns `device` to a guest; `None` if that fails.
    pub fn new(faults: Arc<Faults>, device: Arc<dyn Device>) -> Option<Self> {
        let guest = Guest::new(faults.clone());
        let host = guest.services();
        let memory =
            GuestRegionMmap::<()>::from_range(GuestAddress(RAM), RAM_SIZE as usize, None).unwrap();
        let ram = host.slots.place(RAM, Arc::new(memory)).unwrap();
        let address = "01:00.0".parse().unwrap();
        let function =
            PassthroughFunction::new(address, device.clone(), &host, ResetPolicy::IfPossible)
                .ok()?;
        shown::check(&function, &*device);
        let msix = msix(&function);
        Some(Self { faults, guest, function: Arc::new(function), msix, ram })
    }

    /// Makes the guest's next access. All are accesses that a bus would forward.
    pub fn access(&self, input: &mut Input<'_>) {
        let function = &self.function;
        let kind = input.u8();
        let mut data = input.bytes::<8>();
        let width = [1, 2, 4, 8][usize::from(kind >> 6)];
        let config = usize::min(width, 4);
        match kind & 0xf {
            0 | 1 => {
                let offset = input.u16() & 0xfff & !(config as u16 - 1);
                let _ = function.config_write(offset, &data[..config]);
            }
            // Most registers with side effects are in the first 256 bytes.
            2..=4 => {
                let offset = u16::from(input.u8()) & !(config as u16 - 1);
                let _ = function.config_write(offset, &data[..config]);
            }
            5 => function
                .config_read(input.u16() & 0xfff & !(config as u16 - 1), &mut data[..config]),
            6..=8 => {
                let entry = self.msix.map_or(0, |layout| layout.table.start());
                let bar = self.msix.map_or(0, |layout| layout.table_bar.number());
                let offset = entry + u64::from(input.u16() & 0x1ff) / width as u64 * width as u64;
                function.bar_write(BarIndex::new(bar).unwrap(), offset, &data[..width]);
            }
            9 => {
                let bar = BarIndex::new(input.u8() % 6).unwrap();
                function.bar_write(bar, input.u64(), &data[..width]);
            }
            10 | 11 => {
                let bar = BarIndex::new(input.u8() % 7).unwrap_or(BarIndex::ROM);
                function.bar_read(bar, input.u64(), &mut data[..width]);
            }
            12 => drop(function.retry_placement()),
            13 => {
                let _ = function.decode(Space::Memory, input.u64());
            }
            14 => {
                let _ = function.decode(Space::Io, input.u16().into());
            }
            _ => drop(function.reset()),
        }
    }

    /// Checks the memory slots after an access.
    pub fn check(&self) {
        let slots = self.guest.slots();
        let ram = ByteRange::new(RAM, RAM_SIZE).unwrap();
        assert!(slots.contains(&ram), "RAM has lost its slot: {slots:x?}");
        for (index, slot) in slots.iter().enumerate() {
            assert!(!slots[index + 1..].iter().any(|other| slot.overlaps(*other)), "{slots:x?}");
            if *slot != ram {
                self.check_slot(*slot);
            }
        }
    }

    /// Checks that a slot is within a BAR and holds no MSI-X structure. A guest may place BARs over
    /// one another, so a slot may be within several.
    fn check_slot(&self, slot: ByteRange) {
        let offset_in =
            |bar: &&Bar| self.place(bar)?.offset_of(slot.start()).map(|offset| (bar.index, offset));
        let within = |bar: &&Bar| self.place(bar).is_some_and(|place| place.contains(slot));
        let bars = self.function.bars().iter().filter(within);
        let owners: Vec<_> = bars.filter_map(|bar| offset_in(&bar)).collect();
        assert!(!owners.is_empty(), "slot {slot:x?} is within no BAR");
        let Some(layout) = self.msix else { return };
        let maps_msix = |(bar, offset): &(BarIndex, u64)| {
            let own = ByteRange::new(*offset, slot.size()).unwrap();
            let structures = [(layout.table_bar, layout.table), (layout.pba_bar, layout.pba)];
            structures
                .iter()
                .any(|(place, range)| place == bar && own.overlaps(range.grow_to(PAGE)))
        };
        assert!(
            !owners.iter().all(maps_msix),
            "slot {slot:x?} maps a part of the MSI-X structures {layout:x?}"
        );
    }

    /// The address at which the guest has placed a BAR.
    fn place(&self, bar: &Bar) -> Option<ByteRange> {
        let mut register = [0; 8];
        self.function.config_read(bar.register(), &mut register[..bar.register_size()]);
        let start = bar.address(u64::from_le_bytes(register))?;
        ByteRange::new(start, bar.size)
    }

    fn changes(&self) -> u64 {
        let calls = [
            Call::PlaceSlot,
            Call::RemoveSlot,
            Call::SetIrqs,
            Call::Route,
            Call::Eventfd,
            Call::Reset,
        ];
        calls.iter().map(|call| self.faults.made(*call)).sum()
    }

    /// Stops all failures, then checks that the guest has what it asked for: a repeated request
    /// changes nothing.
    pub fn check_idempotence(&self) {
        self.faults.clear();
        self.repeat_request();
        // A BAR may take the slot that another BAR has freed.
        self.repeat_request();
        let before = (self.changes(), self.guest.delivered(), self.guest.slots());
        self.repeat_request();
        // A slot that is refused because BARs overlap is requested each time.
        let after = (self.guest.delivered(), self.guest.slots());
        assert_eq!((before.1, before.2), after);
        assert!(
            self.refused() != 0 || self.changes() == before.0,
            "a repeated request makes calls"
        );
        self.check();
    }

    /// Writes the command register and the message control of MSI and MSI-X back as they are.
    fn repeat_request(&self) {
        let offsets =
            [Some(0x04), capability(&self.function, 0x05), capability(&self.function, 0x11)];
        for (index, offset) in offsets.into_iter().enumerate() {
            let Some(at) = offset else { continue };
            let at = if index == 0 { at } else { at + 2 };
            let mut data = [0; 2];
            self.function.config_read(at, &mut data);
            let _ = self.function.config_write(at, &data);
        }
    }

    /// The number of memory slots that are requested and refused.
    fn refused(&self) -> u64 {
        let before = self.faults.made(Call::PlaceSlot);
        let _ = self.function.retry_placement();
        self.faults.made(Call::PlaceSlot) - before
    }

    /// Shuts the function down, and checks that only RAM's slot is left.
    pub fn end(self) {
        self.faults.clear();
        let shut = self.function.shutdown();
        let slots = self.guest.slots();
        assert_eq!(
            (slots.len(), self.guest.pins(), self.guest.delivered().len()),
            (1, 0, 0),
            "{shut:?}"
        );
        let mut data = [0; 4];
        self.function.config_read(0, &mut data);
        assert_eq!(data, [0xff; 4]);
        drop((self.function, self.ram));
        assert_eq!(self.guest.slots(), []);
    }
}

/// The offset of a capability in the config space that the guest sees.
fn capability(function: &PassthroughFunction, id: u8) -> Option<u16> {
    let found = shown::list(function).into_iter().find(|(own, _)| *own == id)?;
    Some(found.1)
}

fn msix(function: &PassthroughFunction) -> Option<MsixLayout> {
    let at = capability(function, 0x11)?;
    let [control, table, pba] =
        [at, at + 4, at + 8].map(|at| u32::from_le_bytes(read(function, at)));
    MsixLayout::new((control >> 16) as u16, table, pba)
}
