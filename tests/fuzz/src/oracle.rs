//! A function in a guest, and what must hold of it whatever happens.

use std::sync::Arc;

use vfio_passthrough::backend::Device;
use vfio_passthrough::host::MemorySlot;
use vfio_passthrough::model::{Call, Faults, Guest};
use vfio_passthrough::pci::msix::MsixLayout;
use vfio_passthrough::{Bar, BarIndex, ByteRange, PassthroughFunction, ResetPolicy, Space};
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::input::Input;

const PAGE: u64 = 0x1000;
/// Where BARs go by default, and RAM is: a guest that moves BARs there must not get it.
const RAM: u64 = 0x1000_0000;
const RAM_SIZE: u64 = 0x10_0000;

/// A guest with RAM and one function.
pub struct Vm {
    /// What fails.
    pub faults: Arc<Faults>,
    /// The guest.
    pub guest: Guest,
    /// The function.
    pub function: Arc<PassthroughFunction>,
    msix: Option<MsixLayout>,
    ram: Box<dyn MemorySlot>,
}

impl Vm {
    /// A guest that this device is assigned to; none where it cannot be.
    pub fn new(faults: Arc<Faults>, device: Arc<dyn Device>) -> Option<Self> {
        let guest = Guest::new(faults.clone());
        let host = guest.host();
        let memory =
            GuestRegionMmap::<()>::from_range(GuestAddress(RAM), RAM_SIZE as usize, None).unwrap();
        let ram = host.slots.place(RAM, Arc::new(memory)).unwrap();
        let address = "01:00.0".parse().unwrap();
        let function =
            PassthroughFunction::new(address, device, &host, ResetPolicy::IfPossible).ok()?;
        let msix = msix(&function);
        Some(Self { faults, guest, function: Arc::new(function), msix, ram })
    }

    /// The guest's next access, of those that a bus lets through.
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
            // The registers that do something are in the first 256 bytes.
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

    /// What holds after each access.
    pub fn check(&self) {
        let slots = self.guest.slots();
        let ram = ByteRange::new(RAM, RAM_SIZE).unwrap();
        assert!(slots.contains(&ram), "RAM is where it was: {slots:x?}");
        for (index, slot) in slots.iter().enumerate() {
            assert!(!slots[index + 1..].iter().any(|other| slot.overlaps(*other)), "{slots:x?}");
            if *slot != ram {
                self.check_slot(*slot);
            }
        }
    }

    /// A guest may put BARs over one another, so a place may be in several.
    fn check_slot(&self, slot: ByteRange) {
        let offset_in =
            |bar: &&Bar| self.place(bar)?.offset_of(slot.start()).map(|offset| (bar.index, offset));
        let within = |bar: &&Bar| self.place(bar).is_some_and(|place| place.contains(slot));
        let bars = self.function.bars().iter().filter(within);
        let owners: Vec<_> = bars.filter_map(|bar| offset_in(&bar)).collect();
        assert!(!owners.is_empty(), "{slot:x?} is within no BAR");
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
            "{slot:x?} maps {layout:x?} of the MSI-X structures"
        );
    }

    /// Where the guest has put a BAR.
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

    /// With nothing failing any more: what the guest asks for is there, and asking again changes nothing.
    pub fn check_settled(&self) {
        self.faults.heal();
        self.ask_again();
        // What one BAR gave up another may take.
        self.ask_again();
        let before = (self.changes(), self.guest.delivered(), self.guest.slots());
        self.ask_again();
        // Places that are refused, since BARs overlap, are asked for again.
        let after = (self.guest.delivered(), self.guest.slots());
        assert_eq!((before.1, before.2), after);
        assert!(
            self.refused() != 0 || self.changes() == before.0,
            "a second reconcile plans nothing"
        );
        self.check();
    }

    /// The guest writes what it has: the command, and message control of MSI and MSI-X.
    fn ask_again(&self) {
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

    /// How many places are asked for and refused.
    fn refused(&self) -> u64 {
        let before = self.faults.made(Call::PlaceSlot);
        let _ = self.function.retry_placement();
        self.faults.made(Call::PlaceSlot) - before
    }

    /// Shuts down: nothing is held but RAM.
    pub fn end(self) {
        self.faults.heal();
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

fn read<const N: usize>(function: &PassthroughFunction, offset: u16) -> [u8; N] {
    let mut data = [0; N];
    function.config_read(offset, &mut data);
    data
}

/// Where the guest sees a capability.
fn capability(function: &PassthroughFunction, id: u8) -> Option<u16> {
    let mut next = read::<1>(function, 0x34)[0];
    for _ in 0..48 {
        let [own, after] = read(function, u16::from(next & !3));
        match (next & !3, own == id) {
            (0, _) => return None,
            (at, true) => return Some(at.into()),
            _ => next = after,
        }
    }
    panic!("the guest's list of capabilities loops");
}

fn msix(function: &PassthroughFunction) -> Option<MsixLayout> {
    let at = capability(function, 0x11)?;
    let [control, table, pba] =
        [at, at + 4, at + 8].map(|at| u32::from_le_bytes(read(function, at)));
    MsixLayout::new((control >> 16) as u16, table, pba)
}
