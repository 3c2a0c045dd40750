//! Random guests are compared with a naive model of the specification: the enabled index, the bound
//! and delivered vectors, and the arrived and pending interrupts.

use super::*;
use proptest::prelude::*;

/// The number of vectors in the MSI-X table.
const VECTORS: usize = 6;
/// The end of the MSI capability in its longest form.
const MSI_END: u16 = MSI + 24;

/// An event.
#[derive(Clone, Debug)]
enum Event {
    /// The guest writes config space; the access does not cross a dword.
    Config(u16, Vec<u8>),
    /// The guest writes the MSI-X table.
    Table(u64, Vec<u8>),
    /// The guest asks for a function level reset.
    Reset,
    /// The device fires a vector.
    Raise(u16),
    /// A driver starts without a reset: it enables MSI-X masked, programs its vectors, and clears
    /// the function mask.
    Start(u16),
    /// A driver stops: it masks all vectors, then disables MSI-X.
    Stop,
}

impl Event {
    /// The accesses of the event.
    fn accesses(self) -> Vec<Event> {
        let control = |value: u16| Event::Config(MSIX_CONTROL, value.to_le_bytes().to_vec());
        let word = |vector: u16, register: u64, value: u32| {
            Event::Table(u64::from(vector) * 16 + register, value.to_le_bytes().to_vec())
        };
        match self {
            Event::Start(vectors) => {
                let mut all =
                    vec![Event::Config(COMMAND, vec![6, 4]), control(ENABLE | FUNCTION_MASK)];
                for vector in 0..vectors {
                    let data = 0x40 + u32::from(vector);
                    all.extend(
                        [(12, 1), (0, 0xfee0_0000), (4, 0), (8, data), (12, 0)]
                            .map(|(register, value)| word(vector, register, value)),
                    );
                }
                all.push(control(ENABLE));
                all
            }
            Event::Stop => {
                let masks = (0..VECTORS as u16).map(|vector| word(vector, 12, 1));
                masks.chain([control(0), Event::Config(COMMAND, vec![0, 4])]).collect()
            }
            access => vec![access],
        }
    }
}

/// The present state of MSI or MSI-X.
#[derive(Clone, Debug, Default, PartialEq)]
struct Messages {
    vectors: usize,
    deliverable: BTreeMap<u16, MsiMessage>,
}

/// A naive model of the specification: the registers, and their effects.
struct Naive {
    msi_form: u16,
    command: u16,
    control: u16,
    table: [[u32; 4]; VECTORS],
    msi: [u8; 24],
    /// Vectors of the enabled index that fired and are not delivered.
    pending: Vec<u16>,
    arrived: BTreeMap<MsiMessage, u64>,
}

impl Naive {
    fn new(msi_form: u16) -> Self {
        let mut naive = Self {
            msi_form,
            command: 0,
            control: 0,
            table: [[0, 0, 0, 1]; VECTORS],
            msi: [0; 24],
            pending: Vec::new(),
            arrived: BTreeMap::new(),
        };
        naive.msi[2..4].copy_from_slice(&msi_form.to_le_bytes());
        naive
    }

    fn is_wide(&self) -> bool {
        self.msi_form & 0x80 != 0
    }

    fn has_masks(&self) -> bool {
        self.msi_form & 0x100 != 0
    }

    fn data_at(&self) -> usize {
        if self.is_wide() { 12 } else { 8 }
    }

    fn msi_u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.msi[at..at + 4].try_into().unwrap())
    }

    /// The bits of the MSI capability that the guest can set.
    fn msi_writable(&self, at: usize) -> u8 {
        let data = self.data_at();
        let masks = if self.has_masks() { data + 4..data + 8 } else { 0..0 };
        match at {
            2 => 0b0111_0001,
            4 => 0xfc,
            5..8 => 0xff,
            8..12 if self.is_wide() => 0xff,
            at if at == data || at == data + 1 || masks.contains(&at) => 0xff,
            _ => 0,
        }
    }

    fn write_byte(&mut self, at: u16, value: u8) {
        match at {
            4 => self.command = self.command & 0xff00 | u16::from(value & 0b0100_0111),
            5 => self.command = self.command & 0x00ff | u16::from(value & 0b101) << 8,
            0x43 => self.control = u16::from(value & 0xc0) << 8,
            MSI..MSI_END => {
                let index = usize::from(at - MSI);
                let mask = self.msi_writable(index);
                self.msi[index] = self.msi[index] & !mask | value & mask;
            }
            _ => {}
        }
    }

    fn msix(&self) -> Option<Messages> {
        let open = self.control & FUNCTION_MASK == 0;
        let entries = (0..).zip(self.table);
        let deliverable = entries.filter(|(_, entry)| open && entry[3] & 1 == 0);
        let message = |entry: [u32; 4]| MsiMessage {
            address: u64::from(entry[1]) << 32 | u64::from(entry[0] & !3),
            data: entry[2],
        };
        (self.control & ENABLE != 0).then(|| Messages {
            vectors: VECTORS,
            deliverable: deliverable.map(|(vector, entry)| (vector, message(entry))).collect(),
        })
    }

    fn msi(&self) -> Option<Messages> {
        let power = (self.msi[2] >> 4 & 7).min((self.msi_form >> 1 & 7) as u8);
        let vectors = 1_u16 << power;
        let upper = if self.is_wide() { self.msi_u32(8) } else { 0 };
        let address = u64::from(upper) << 32 | u64::from(self.msi_u32(4));
        let data = u16::from_le_bytes([self.msi[self.data_at()], self.msi[self.data_at() + 1]]);
        let masks = if self.has_masks() { self.msi_u32(self.data_at() + 4) } else { 0 };
        let message = |vector: u16| MsiMessage {
            address,
            data: u32::from(data / vectors * vectors + vector),
        };
        let open = |vector: &u16| masks >> vector & 1 == 0;
        (self.msi[2] & 1 != 0).then(|| Messages {
            vectors: vectors.into(),
            deliverable: (0..vectors)
                .filter(open)
                .map(|vector| (vector, message(vector)))
                .collect(),
        })
    }

    /// The enabled index, and its messages if it has any.
    fn on(&self) -> (Option<u32>, Messages) {
        let pin = (self.command & 0b11 != 0).then_some(INTX);
        let msix = self.msix().map(|messages| (Some(ON_MSIX), messages));
        let msi = || self.msi().map(|messages| (Some(ON_MSI), messages));
        msix.or_else(msi).unwrap_or((pin, Messages::default()))
    }

    fn fire(&mut self, vector: u16) {
        let (_, messages) = self.on();
        match messages.deliverable.get(&vector) {
            Some(message) => *self.arrived.entry(*message).or_default() += 1,
            None if usize::from(vector) < messages.vectors && !self.pending.contains(&vector) => {
                self.pending.push(vector)
            }
            None => {}
        }
    }

    fn happen(&mut self, event: &Event) {
        let before = self.on();
        match event {
            Event::Config(offset, data) => {
                (*offset..).zip(data).for_each(|(at, value)| self.write_byte(at, *value))
            }
            Event::Table(offset, data)
                if matches!(data.len(), 4 | 8) && *offset % data.len() as u64 == 0 =>
            {
                for (index, word) in data.chunks_exact(4).enumerate() {
                    let at = *offset as usize / 4 + index;
                    self.table[at / 4][at % 4] = u32::from_le_bytes(word.try_into().unwrap());
                }
            }
            Event::Raise(vector) => self.fire(*vector),
            Event::Reset => {
                let arrived = std::mem::take(&mut self.arrived);
                *self = Self::new(self.msi_form);
                self.arrived = arrived;
            }
            _ => {}
        }
        let after = self.on();
        // Another index or another number of vectors clears what was pending.
        if (before.0, before.1.vectors) != (after.0, after.1.vectors) {
            self.pending.clear();
        }
        // Pending vectors fire when they are unmasked.
        for vector in std::mem::take(&mut self.pending) {
            self.fire(vector);
        }
    }
}

fn happen(setup: &Setup, event: &Event) {
    match event {
        Event::Config(offset, data) => {
            let _ = setup.function.config_write(*offset, data);
        }
        Event::Table(offset, data) => setup.table_write(*offset, data),
        Event::Raise(vector) => setup.device.raise(*vector).unwrap(),
        Event::Reset => setup.write(EXPRESS_CONTROL, 0x8000),
        Event::Start(_) | Event::Stop => {}
    }
}

/// Compares the state of the host and that of the guest.
fn compare(setup: &Setup, naive: &mut Naive, flags: IrqFlags) -> Result<(), TestCaseError> {
    compare_host(setup, naive, flags)?;
    prop_assert_eq!(setup.guest.arrived(), std::mem::take(&mut naive.arrived));
    let (kind, _) = naive.on();
    let bits = naive.pending.iter().fold(0_u64, |bits, vector| bits | 1 << vector);
    let pending = |own: Option<u32>| if kind == own { bits } else { 0 };
    // A function that decodes no memory has no array to read.
    if setup.read(COMMAND) & 2 != 0 {
        prop_assert_eq!(setup.pending(), pending(Some(ON_MSIX)));
    }
    compare_msi(setup, naive, pending(Some(ON_MSI)) as u32)
}

/// Compares the enabled index, and the bound and delivered vectors.
fn compare_host(setup: &Setup, naive: &Naive, flags: IrqFlags) -> Result<(), TestCaseError> {
    let (kind, messages) = naive.on();
    let irqs = setup.device.irqs();
    prop_assert_eq!(irqs.active, kind);
    prop_assert_eq!(setup.guest.pins(), usize::from(kind == Some(INTX)));
    prop_assert_eq!(&setup.guest.delivered(), &messages.deliverable);
    let is_bound = |vector: &u16| irqs.bound.contains(&u32::from(*vector));
    prop_assert!(messages.deliverable.keys().all(is_bound));
    if kind == Some(ON_MSI) || kind == Some(ON_MSIX) && flags == NORESIZE {
        prop_assert_eq!(irqs.bound.len(), messages.vectors);
    }
    Ok(())
}

fn compare_msi(setup: &Setup, naive: &Naive, pending: u32) -> Result<(), TestCaseError> {
    let end = naive.data_at() + if naive.has_masks() { 12 } else { 2 };
    let mut expected = naive.msi;
    if naive.has_masks() {
        expected[end - 4..end].copy_from_slice(&pending.to_le_bytes());
    }
    let byte = |at: usize| {
        let mut byte = [0];
        setup.function.config_read(MSI + at as u16, &mut byte);
        byte[0]
    };
    prop_assert_eq!((2..end).map(byte).collect::<Vec<_>>(), &expected[2..end]);
    Ok(())
}

/// A write of 1, 2 or 4 bytes within one of these dwords.
fn config_write(dwords: impl Strategy<Value = u16>) -> impl Strategy<Value = Event> {
    let bytes = prop::collection::vec(prop_oneof![Just(0), Just(0xff), Just(0x80), any::<u8>()], 4);
    (dwords, prop_oneof![Just(1_u16), Just(2), Just(4)], 0..4_u16, bytes).prop_map(
        |(dword, width, at, bytes)| {
            let at = at / width * width;
            Event::Config(dword * 4 + at, bytes[..usize::from(width)].to_vec())
        },
    )
}

fn table_write() -> impl Strategy<Value = Event> {
    let size = VECTORS as u64 * 16;
    let register = prop_oneof![Just(0_u32), Just(1), Just(0xfee0_0000), any::<u32>()];
    (0..size / 4, any::<bool>(), register.clone(), register).prop_map(
        move |(word, wide, low, high)| {
            let value = u64::from(low) | u64::from(high) << 32;
            let length = if wide && word < size / 4 - 1 { 8 } else { 4 };
            Event::Table(word * 4, value.to_le_bytes()[..length].to_vec())
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => config_write(Just(0x40 / 4)),
        3 => config_write(MSI / 4..MSI_END / 4),
        2 => config_write(Just(COMMAND / 4)),
        6 => table_write(),
        1 => Just(Event::Reset),
        8 => (0..34_u16).prop_map(|vector| Event::Raise(vector % 12)),
        2 => (0..=VECTORS as u16).prop_map(Event::Start),
        1 => Just(Event::Stop),
    ]
}

fn forms() -> impl Strategy<Value = u16> {
    let form = prop_oneof![Just(0_u16), Just(0x80), Just(0x100), Just(0x180)];
    (form, 0..4_u16).prop_map(|(form, power)| form | power << 1)
}

fn fault() -> impl Strategy<Value = (Call, u64)> {
    (prop_oneof![Just(Call::Route), Just(Call::SetIrqs)], 0..4_u64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_host_matches_the_guests_registers(
        events in prop::collection::vec(event(), 1..60),
        form in forms(),
        dynamic: bool,
    ) {
        let flags = if dynamic { DYNAMIC } else { NORESIZE };
        let setup = Setup::new(Some(form), Some((VECTORS as u16, flags)));
        let mut naive = Naive::new(form);
        for event in events.into_iter().flat_map(Event::accesses) {
            happen(&setup, &event);
            naive.happen(&event);
            compare(&setup, &mut naive, flags)?;
        }
    }

    #[test]
    fn the_next_access_after_failures_corrects_the_host(
        events in prop::collection::vec((event(), prop::option::of(fault())), 1..30),
        form in forms(),
        dynamic: bool,
    ) {
        let flags = if dynamic { DYNAMIC } else { NORESIZE };
        let setup = Setup::new(Some(form), Some((VECTORS as u16, flags)));
        let mut naive = Naive::new(form);
        for (event, fault) in events {
            fault.into_iter().for_each(|(call, nth)| setup.faults.fail(call, nth, libc::ENOMEM));
            for access in event.accesses() {
                happen(&setup, &access);
                naive.happen(&access);
            }
        }
        setup.faults.clear();
        setup.write(MSIX_CONTROL, naive.control);
        compare_host(&setup, &naive, flags)?;
    }
}
