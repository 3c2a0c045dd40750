//! Random accesses of a guest to BARs are compared with a naive model of the specification's
//! registers.

use proptest::prelude::*;

use super::*;

/// The register, the kind bits, the region's size, and the mappable areas.
type Described = (usize, u32, u64, &'static [(u64, u64)]);

/// The BARs of the device.
const BARS: [Described; 3] = [
    (0, 0x4, 0x4000, &[(0, 0x4000)]),
    (2, 0x0, 0x1000, &[(0, 0x1000)]),
    (4, 0xc, 0x8000, &[(0x1000, 0x2000), (0x5000, 0x1000)]),
];

/// An operation of a guest or its VMM.
#[derive(Clone, Debug)]
enum Step {
    Command(u16),
    Power(u8),
    /// A write to BAR registers, at an offset from 0x10.
    Write(u16, Vec<u8>),
    Flr,
    Reset,
}

/// The registers with the guest's writes.
#[derive(Default)]
struct Naive {
    command: u16,
    power: u8,
    bars: [u8; 24],
    /// For each register: the last write of its lowest byte was all ones.
    ones: [bool; 6],
}

impl Naive {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Command(value) => self.command = *value,
            Step::Power(value) => self.power = *value,
            Step::Flr | Step::Reset => *self = Self::default(),
            Step::Write(offset, data) => {
                for (at, value) in (usize::from(*offset)..24).zip(data) {
                    self.bars[at] = *value;
                    self.ones[at / 4] =
                        if at % 4 == 0 { *value == 0xff } else { self.ones[at / 4] };
                }
            }
        }
    }

    /// The memory slots that there should be.
    fn wanted(&self) -> Vec<ByteRange> {
        let on = self.command & 2 != 0 && self.power == 0;
        let decoding = BARS.iter().filter(|bar| on && !self.ones[bar.0]);
        decoding
            .flat_map(|(index, kind, size, areas)| {
                let word = |index: usize| {
                    u32::from_le_bytes(self.bars[index * 4..][..4].try_into().unwrap())
                };
                let upper = if kind & 4 != 0 { word(index + 1) } else { 0 };
                let base = (u64::from(upper) << 32 | u64::from(word(*index))) & !(size - 1);
                let sized = kind & 4 == 0 && base == 0x1_0000_0000 - size;
                let is_address = base != 0 && !sized && base < 1 << 52;
                let areas = areas.iter().filter(move |_| is_address);
                areas.map(move |(start, size)| range(base + start, *size))
            })
            .collect()
    }
}

fn setup() -> Setup {
    let (mut registers, mut sizes) = ([0; 6], [0; 6]);
    for (index, kind, size, _) in BARS {
        registers[index] = kind;
        sizes[index] = size;
    }
    Setup::of(config_of(registers, &[]), &sizes, |device| {
        BARS.into_iter().fold(device, |device, (index, _, _, areas)| {
            let areas = areas.iter().map(|(start, size)| range(*start, *size)).collect();
            device.with_region(index as u32, |region| region.sparse = Some(areas))
        })
    })
}

impl Setup {
    fn take(&self, step: &Step) {
        match step {
            Step::Command(value) => self.write16(COMMAND, *value),
            Step::Power(value) => self.write16(PM_CONTROL, u16::from(*value)),
            Step::Flr => self.write16(EXPRESS_CONTROL, 0x8000),
            Step::Reset => self.function.reset().1.unwrap_or_default(),
            Step::Write(offset, data) => {
                let _ = self.function.config_write(0x10 + offset, data);
            }
        }
    }
}

/// Values that collide, that size a BAR, or that are no valid address.
fn value() -> impl Strategy<Value = u32> {
    let known =
        [0, 0x38, 0x39, 0xe000_0000, 0xe000_4000, 0xe000_2000, 0xffff_c004, 0x0010_0000, u32::MAX];
    prop_oneof![8 => prop::sample::select(known.to_vec()), 1 => any::<u32>()]
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0..6_u16, value(), prop::sample::select(vec![1_usize, 2, 4]), 0..4_u16);
    let write = write.prop_map(|(register, value, width, byte)| {
        let byte = byte - byte % width as u16;
        let data = value.to_le_bytes()[usize::from(byte)..][..width].to_vec();
        Step::Write(register * 4 + byte, data)
    });
    let straddling = (0..24_u16, prop::collection::vec(any::<u8>(), 1..9));
    prop_oneof![
        12 => write,
        4 => prop::sample::select(vec![0, 2, 6, 7, 0x0406]).prop_map(Step::Command),
        2 => (0..4_u8).prop_map(Step::Power),
        1 => straddling.prop_map(|(offset, data)| {
            let length = data.len().min(24 - usize::from(offset));
            Step::Write(offset, data[..length].to_vec())
        }),
        1 => Just(Step::Flr),
        1 => Just(Step::Reset),
    ]
}

/// Every slot is wanted, and every wanted slot exists unless another slot overlaps it.
fn consistent(slots: &[ByteRange], wanted: &[ByteRange]) -> bool {
    let belongs = |slot: &ByteRange| wanted.contains(slot);
    let there = |range: &ByteRange| slots.iter().any(|slot| slot.overlaps(*range));
    slots.iter().all(belongs) && wanted.iter().all(there)
}

proptest! {
    #[test]
    fn slots_match_the_registers(steps in prop::collection::vec(step(), 1..60)) {
        let (setup, mut naive) = (setup(), Naive::default());
        for step in &steps {
            setup.take(step);
            naive.take(step);
            let (slots, wanted) = (setup.guest.slots(), naive.wanted());
            prop_assert!(consistent(&slots, &wanted), "{step:?}: {slots:?}, not {wanted:?}");
            let reached = slots.iter().filter(|slot| setup.iommu.reaches(**slot));
            let reached = reached.copied().collect::<Vec<_>>();
            prop_assert_eq!(setup.iommu.mappings(), reached, "the slots are mapped: {:?}", step);
            let calls = setup.slot_calls();
            if slots.len() == wanted.len() {
                setup.take(&Step::Command(naive.command));
                setup.take(&Step::Power(naive.power));
                prop_assert_eq!(setup.slot_calls(), calls, "nothing changed");
            }
        }
    }

    #[test]
    fn failures_leave_no_slot_at_a_wrong_address(
        steps in prop::collection::vec(
            (step(), prop::option::of((any::<bool>(), 0..4_u64))),
            1..40,
        ),
    ) {
        let (setup, mut naive) = (setup(), Naive::default());
        for (step, fault) in &steps {
            let call = |removal: bool| if removal { Call::RemoveSlot } else { Call::PlaceSlot };
            if let Some((removal, nth)) = fault {
                setup.faults.fail(call(*removal), *nth, libc::ENOMEM);
            }
            setup.take(step);
            naive.take(step);
            setup.faults.clear();
            let (slots, wanted) = (setup.guest.slots(), naive.wanted());
            // A single failed removal is retried immediately.
            prop_assert!(slots.iter().all(|slot| wanted.contains(slot)), "{step:?}: {slots:?}");
            setup.take(&Step::Command(naive.command));
            let slots = setup.guest.slots();
            let mapped = setup.iommu.mappings();
            let placed = mapped.iter().all(|range| slots.contains(range));
            prop_assert!(placed, "{step:?}: {mapped:?}, not {slots:?}");
            prop_assert!(consistent(&slots, &wanted), "{step:?}: {slots:?}, not {wanted:?}");
        }
    }
}
