//! Slots of the root bus whose devices come and go (ACPI 6.5, 6.3).

use std::ops::Range;

use devices::HotPlug;

use super::aml;

/// The slots; slot 0 has the host bridge.
pub(super) const SLOTS: Range<u8> = 1..devices::SLOTS;
/// The method that notifies the slots of arrivals and requests.
pub(super) const EVENT: &aml::Segment = b"PLUG";

const REGION: &aml::Segment = b"REGS";
const ARRIVED: &aml::Segment = b"ARRV";
const WANTED: &aml::Segment = b"WANT";
const PRESENT: &aml::Segment = b"PRES";
const EJECT: &aml::Segment = b"EJCT";

/// Notification values (ACPI 6.5, table 5.184): the OSPM looks at the device, or ejects it.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
/// `_STA` of a device that is present, enabled, shown and functional (ACPI 6.5, 6.3.7).
const WORKS: u32 = 0xf;

/// The objects of the host bridge: registers, a device for each slot, and the method [`EVENT`].
pub(super) fn objects() -> Vec<u8> {
    let registers = aml::registers(REGION, HotPlug::BASE, &[ARRIVED, WANTED, PRESENT, EJECT]);
    let slots = SLOTS.flat_map(device);
    registers.into_iter().chain(slots).chain(event()).collect()
}

fn name(slot: u8) -> aml::Segment {
    let digit = |value: u8| char::from_digit(value.into(), 16).map_or(b'_', |digit| digit as u8);
    [b'S', digit(slot >> 4), digit(slot & 0xf), b'_'].map(|byte| byte.to_ascii_uppercase())
}

fn bit(slot: u8) -> Vec<u8> {
    aml::integer(1_u32.checked_shl(slot.into()).unwrap_or(0))
}

/// A slot. Linux finds the other functions of its device by function 0 (pci_scan_slot).
fn device(slot: u8) -> Vec<u8> {
    let is_present = aml::and(PRESENT, &bit(slot));
    let works = aml::when(&is_present, &aml::back(&aml::integer(WORKS)));
    let status = [works, aml::back(&aml::integer(0))].concat();
    let objects = [
        aml::name(b"_ADR", &aml::integer(u32::from(slot) << 16)),
        aml::name(b"_SUN", &aml::integer(slot.into())),
        aml::method(b"_STA", 0, &status),
        aml::method(b"_EJ0", 1, &aml::store(&bit(slot), EJECT)),
    ];
    aml::device(&name(slot), &objects)
}

/// Reads each register once, because a read clears it.
fn event() -> Vec<u8> {
    let [arrived, wanted] = aml::LOCALS;
    let reads = [aml::store(ARRIVED, &arrived), aml::store(WANTED, &wanted)].concat();
    let notify = |slot: u8| {
        let when = |slots: &[u8], value| {
            aml::when(&aml::and(slots, &bit(slot)), &aml::notify(&name(slot), value))
        };
        [when(&arrived, DEVICE_CHECK), when(&wanted, EJECT_REQUEST)].concat()
    };
    let body: Vec<u8> = reads.into_iter().chain(SLOTS.flat_map(notify)).collect();
    aml::method(EVENT, 0, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(bytes: &[u8], part: &[u8]) -> usize {
        bytes.windows(part.len()).filter(|window| *window == part).count()
    }

    #[test]
    fn each_slot_but_that_of_the_host_bridge_has_a_device_with_its_address() {
        let objects = objects();
        for name in [b"_ADR", b"_SUN", b"_STA", b"_EJ0"] {
            assert_eq!(count(&objects, name), 31, "{name:?}");
        }
        for (slot, expected) in [(1, b"S01_"), (0x1f, b"S1F_")] {
            assert_eq!(name(slot), *expected);
            // Its device, and two notifications of it.
            assert_eq!(count(&objects, expected), 3);
            let address = aml::name(b"_ADR", &aml::integer(u32::from(slot) << 16));
            assert_eq!(count(&objects, &address), 1);
        }
        assert_eq!(count(&objects, b"S00_"), 0);
    }

    /// The guest learns of each change once: the registers are cleared by a read.
    #[test]
    fn the_event_reads_each_register_once() {
        let event = event();
        assert_eq!([ARRIVED, WANTED, PRESENT, EJECT].map(|name| count(&event, name)), [1, 1, 0, 0]);
        let [arrived, wanted] = aml::LOCALS;
        let check = [&aml::and(&arrived, &bit(5))[..], &aml::notify(b"S05_", 1)].concat();
        let eject = [&aml::and(&wanted, &bit(5))[..], &aml::notify(b"S05_", 3)].concat();
        assert_eq!((count(&event, &check), count(&event, &eject)), (1, 1));
    }
}
